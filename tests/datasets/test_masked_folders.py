# SPDX-License-Identifier: Apache-2.0
"""Class folders with masks beside the images or in a folder of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgap.datasets import MaskedFolders
from mmgap.generators import SourceSet


@pytest.fixture
def root(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ('cat', 'ape'):
        for i in range(3):
            folder = tmp_path / 'data' / name / ('deep' if i else '.')
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.JPG', format='png')
            mask = np.zeros((20, 24), np.uint8)
            mask[5:12, 5:12] = 255
            Image.fromarray(mask).save(folder / f'{i}_mask.png')
    (tmp_path / 'data' / 'cat' / 'notes.txt').write_text('no image')
    return tmp_path / 'data'


def test_masks_beside_the_images(root):
    dataset = MaskedFolders(str(root))
    assert dataset.metainfo['classes'] == ('ape', 'cat') and len(dataset) == 6
    names = [Path(dataset.get_data_info(i)['img_path']).relative_to(root) for i in range(6)]
    assert [str(n) for n in names[:3]] == ['ape/0.JPG', 'ape/deep/1.JPG', 'ape/deep/2.JPG']
    assert [dataset.get_cat_ids(i) for i in range(6)] == [[0]] * 3 + [[1]] * 3
    sources = SourceSet(dataset, (20, 20))
    assert sources.classes == ('ape', 'cat') and sources.load([4]).masks.sum() == 49


def test_masks_in_a_folder_of_their_own(root):
    for mask in list(root.rglob('*_mask.png')):
        moved = root / 'masks' / mask.relative_to(root).parent / mask.name.replace('_mask', '')
        moved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(mask, moved)
    dataset = MaskedFolders(str(root), mask_dir='masks', metainfo=dict(classes=('cat', 'ape')))
    info = dataset.get_data_info(0)
    assert info['mask_path'] == str(root / 'masks' / 'cat' / '0.png') and info['gt_label'] == 0
    assert MaskedFolders(str(root), mask_dir='masks').metainfo['classes'] == ('ape', 'cat')
    with pytest.raises(FileNotFoundError, match='6 of 6 masks of .* are missing, .*_mask'):
        MaskedFolders(str(root), metainfo=dict(classes=('cat', 'ape')))
    (root / '.ipynb_checkpoints').mkdir()
    for given in ('masks', 'masks/', './masks', str(root / 'masks')):
        plain = MaskedFolders(str(root), with_masks=False, mask_dir=given)
        assert plain.metainfo['classes'] == ('ape', 'cat') and len(plain) == 6
        assert 'mask_path' not in plain.get_data_info(0)


def test_what_is_missing_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"no folder of classes \['dog'\]; it has \['ape'"):
        MaskedFolders(str(root), metainfo=dict(classes=('dog', 'cat')))
    (root / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty has no images'):
        MaskedFolders(str(root))
    with pytest.raises(FileNotFoundError, match='nowhere.* does not exist'):
        MaskedFolders(str(root / 'nowhere'))
