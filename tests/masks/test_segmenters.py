# SPDX-License-Identifier: Apache-2.0
"""SAM from a folder: what it makes of boxes and of none, and folders that hold no SAM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import SamModel, SamProcessor

from mmgap.masks import SamSegmenter
from mmgap.registry import TASK_UTILS
from tests.support.tiny import save_tiny_sam

BOXES = np.array([[10.0, 10.0, 40.0, 40.0], [72.0, 40.0, 120.0, 88.0]])


@pytest.fixture(scope='module')
def sam(tmp_path_factory) -> Path:
    return save_tiny_sam(tmp_path_factory.mktemp('sam'))


@pytest.fixture(scope='module')
def segmenter(sam) -> SamSegmenter:
    return TASK_UTILS.build(dict(type='mmgap.SamSegmenter', model=str(sam), device='cpu'))


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    """Twice the size of the model's input, and not square."""
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def by_hand(sam: Path, image: np.ndarray, several: bool, **prompt: torch.Tensor) -> tuple:
    """``(objects, masks of each, 96, 128)`` bool and trust ``(objects, masks of each)``."""
    pixels = SamProcessor.from_pretrained(sam)(images=image, return_tensors='pt').pixel_values
    with torch.no_grad():
        output = SamModel.from_pretrained(sam)(
            pixel_values=pixels, multimask_output=several, **prompt
        )
    settings = dict(mode='bilinear', align_corners=False)
    padded = F.interpolate(output.pred_masks[0], (64, 64), **settings)
    return F.interpolate(padded[:, :, :48], (96, 128), **settings) > 0, output.iou_scores[0]


def test_boxes_give_the_union_of_their_masks(segmenter, sam, image):
    in_input = torch.tensor(BOXES / 2)[None].float()
    masks, _ = by_hand(sam, image, False, input_boxes=in_input)
    one, two = masks[:, 0].numpy()
    assert (one & ~two).any() and (two & ~one).any() and not (one | two).all()
    mask = segmenter(image, BOXES)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, one | two)
    np.testing.assert_array_equal(segmenter(image, BOXES[:1]), one)


def test_without_boxes_the_centre_and_the_mask_it_trusts(segmenter, sam, image):
    masks, trust = by_hand(sam, image, True, input_points=torch.tensor([[[[32.0, 24.0]]]]))
    assert len({mask.sum().item() for mask in masks[0]}) == 3
    expected = masks[0, trust[0].argmax()].numpy()
    np.testing.assert_array_equal(segmenter(image, np.zeros((0, 4))), expected)


def edit(folder: Path, part: str | None, **settings) -> None:
    config = json.loads((folder / 'config.json').read_text())
    (config[part] if part else config).update(settings)
    (folder / 'config.json').write_text(json.dumps(config))


def truncate(folder: Path) -> None:
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    'damage, kind, words',
    [
        (shutil.rmtree, FileNotFoundError, 'is neither a folder nor a hub id'),
        (lambda f: (f / 'config.json').unlink(), ValueError, 'has no config.json: it is no trans'),
        (lambda f: edit(f, None, model_type='sam2'), ValueError, "is a 'sam2' model, not a SAM"),
        (lambda f: edit(f, None, model_type='x'), ValueError, 'is not a SAM of transformers'),
        (
            lambda f: edit(f, 'mask_decoder_config', iou_head_hidden_dim=8),
            ValueError,
            "5 weights are missing or have another shape than config.json says, 'mask_decoder",
        ),
        (
            lambda f: edit(f, 'vision_config', num_hidden_layers=3),
            ValueError,
            "14 weights are missing .*'vision_encoder.layers.2",
        ),
        (truncate, FileNotFoundError, 'neither a complete transformers folder'),
        (
            lambda f: (f / 'processor_config.json').unlink(),
            FileNotFoundError,
            'neither a complete transformers folder',
        ),
    ],
)
def test_folders_that_hold_no_sam(sam, tmp_path, damage, kind, words):
    folder = Path(shutil.copytree(sam, tmp_path / 'sam'))
    damage(folder)
    with pytest.raises(kind, match=words) as error:
        SamSegmenter(str(folder))
    assert f'model={str(folder)!r}' in str(error.value)


def test_what_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="'owner/name' is neither a complete transformers"):
        SamSegmenter('owner/name')
    (tmp_path / 'sam_vit_b.pth').write_bytes(b'weights in the format of SAM itself')
    with pytest.raises(FileNotFoundError, match='sam_vit_b.pth.* is neither a folder nor a hub id'):
        SamSegmenter(str(tmp_path / 'sam_vit_b.pth'))
