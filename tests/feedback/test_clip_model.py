# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmgap.feedback import ClipModel
from mmgap.weights import resolve

NAME = 'mmgap://toybirds-clip'


@pytest.fixture(scope='module')
def clip() -> ClipModel:
    return ClipModel(NAME)


@pytest.fixture(scope='module')
def reference():
    """The model as open_clip itself makes it, with its own preprocessing."""
    name = f'local-dir:{resolve(NAME)}'
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def smooth(height: int, width: int) -> Image.Image:
    """A picture without details, on which resizing libraries agree."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(y / 40), np.cos(x / 50), np.sin((x + y) / 60)]
    return Image.fromarray((127.5 * (1 + np.stack(channels, -1))).astype(np.uint8))


@pytest.mark.parametrize('size', [(64, 64), (128, 128), (100, 160), (200, 90)])
def test_image_features_equal_open_clips(size, clip, reference):
    model, preprocess, _ = reference
    image = smooth(*size)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model.encode_image(preprocess(image)[None], normalize=True)
        found = clip.encode_images(tensor)
    # At another size PIL rounds to 8 bits in between.
    atol = 1e-5 if size == (64, 64) else 0.02
    torch.testing.assert_close(found.cpu(), expected, atol=atol, rtol=0)


def test_text_features_equal_open_clips(clip, reference):
    model, _, tokenizer = reference
    texts = ['a photo of a landbird in a forest', 'a lake at night']
    expected = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(clip.encode_texts(texts).cpu(), expected)


def test_gradient_reaches_the_image(clip):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 80, 80, requires_grad=True)
    direction = torch.randn(128).to(clip.device)
    value = (clip.encode_images(image) * direction).sum()
    (grad,) = torch.autograd.grad(value, image)
    step = 1e-2 * grad / grad.norm()
    with torch.no_grad():
        up, down = ((clip.encode_images(image + s) * direction).sum() for s in (step, -step))
    assert float(up - down) / 2e-2 == pytest.approx(grad.norm().item(), rel=2e-2)
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_bad_input(clip, tmp_path):
    with pytest.raises(ValueError, match=r"'bird bird.*40 tokens, CLIP takes 30.*cut after"):
        clip.encode_texts([' '.join(['bird'] * 40)])
    with pytest.raises(FileNotFoundError, match="'ViT-Q-7' is neither a folder nor a name"):
        ClipModel('ViT-Q-7')
    with pytest.raises(ValueError, match="'RN50' needs pretrained"):
        ClipModel('RN50')
    save_file(clip.model.state_dict(), tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match="does not fit clip model='ViT-S-32-alt'"):
        ClipModel('ViT-S-32-alt', str(tmp_path / 'other.safetensors'))
