# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import mmcv
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mmgap.sources import SourceSet


def test_image_mask_and_label_go_together(tmp_path, drawn):
    for info in drawn.infos:  # the foreground is white, the rest black
        mask = np.array(Image.open(info['mask_path']))
        Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(info['img_path'])
    batch = SourceSet(drawn, (10, 10)).load(range(len(drawn)))
    for image, mask in zip(batch.images, batch.masks, strict=True):
        assert image[:, mask[0]].float().mean() > 150 > 60 > image[:, ~mask[0]].float().mean()
    assert batch.labels.tolist() == [info['gt_label'] for info in drawn.infos]


def test_no_masks_is_an_error(drawn):
    del drawn.infos[3]['mask_path']
    with pytest.raises(ValueError, match=r"1 of 12 .*'mask_path'.*3\.png"):
        SourceSet(drawn, (16, 16))


def test_class_without_sources_is_an_error(drawn):
    drawn.metainfo['classes'] = ('a', 'b', 'wren')
    with pytest.raises(ValueError, match='class wren'):
        SourceSet(drawn, (16, 16))


@pytest.mark.parametrize(
    'value, words', [(0, 'has no foreground'), (255, 'covers the whole image')]
)
def test_empty_and_full_masks_are_errors(value, words, drawn):
    path = drawn.infos[2]['mask_path']
    Image.fromarray(np.full((20, 20), value, np.uint8)).save(path)
    with pytest.raises(ValueError, match=f'2_mask.png {words}'):
        SourceSet(drawn, (16, 16)).load([2])


def test_mask_of_another_size_is_an_error(drawn):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(drawn.infos[0]['mask_path'])
    with pytest.raises(ValueError, match='0_mask.png is 9x9'):
        SourceSet(drawn, (16, 16)).load([0])


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_images_stand_as_cameras_say(orientation, drawn):
    """As the model sees them through mmcv; masks are of the upright image."""
    path = drawn.infos[0]['img_path']
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:12, :8] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    upright = mmcv.imread(path)
    mask = upright[..., 0] > 127
    Image.fromarray(mask).convert('L').save(drawn.infos[0]['mask_path'])
    condition = SourceSet(drawn, upright.shape[:2]).load([0])
    assert torch.equal(condition.masks[0, 0], torch.from_numpy(mask))
    assert condition.images[0][:, mask].min() > 200 and condition.images[0][:, ~mask].max() < 50


def test_several_labels_are_an_error(drawn):
    drawn.infos[4]['gt_label'] = [0, 1]
    with pytest.raises(ValueError, match=r'gt_label=\[0, 1\] of .*4.png.* is not one class'):
        SourceSet(drawn, (16, 16))
