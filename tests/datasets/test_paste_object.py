# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mmgap.datasets import PasteObject
from mmgap.images import read_image, read_mask

TOYBIRDS = dict(type='mmgap.ToyBirds', split='train', size=12)


@pytest.fixture(scope='module')
def infos():
    dataset = DATASETS.build(TOYBIRDS)
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_the_object_stays_and_the_rest_is_an_image_of_another_class(infos):
    paste, seen = PasteObject(TOYBIRDS, prob=1), set()
    np.random.seed(0)
    for info in infos * 4:
        own = read_image(info)[..., ::-1]
        image = paste.transform(dict(info, img=own.copy()))['img']
        assert image.shape == own.shape and image.dtype == np.uint8
        mask = read_mask(info['mask_path'])
        assert mask.any() and np.array_equal(image[mask], own[mask])
        behind = [
            other['sample_idx']
            for other in infos
            if np.array_equal(read_image(other)[..., ::-1][~mask], image[~mask])
        ]
        assert len(behind) == 1 and infos[behind[0]]['gt_label'] != info['gt_label']
        seen.update(behind)
    assert len(seen) > 8  # of all of them


def test_share_and_errors(infos):
    image = read_image(infos[0])[..., ::-1]
    same = PasteObject(TOYBIRDS, prob=0).transform(dict(infos[0], img=image.copy()))['img']
    assert np.array_equal(same, image)
    np.random.seed(0)
    half = PasteObject(TOYBIRDS)
    made = [half.transform(dict(infos[0], img=image.copy()))['img'] for _ in range(40)]
    assert 10 < sum(not np.array_equal(one, image) for one in made) < 30
    every = PasteObject(TOYBIRDS, prob=1)
    with pytest.raises(ValueError, match='needs masks, and .* has no mask_path'):
        every.transform(dict(infos[0], img=image, mask_path=None))
    with pytest.raises(ValueError, match='put PasteObject right after loading'):
        every.transform(dict(infos[0], img=image[:20]))
    with pytest.raises(ValueError, match='no image of another class'):
        PasteObject(dict(TOYBIRDS, size=1), prob=1).transform(dict(infos[0], img=image))
    with pytest.raises(ValueError, match=r'prob must be in \[0, 1\], got 2'):
        PasteObject(TOYBIRDS, prob=2)
