# SPDX-License-Identifier: Apache-2.0
"""Models as people have them: half precision alone, one file, parts that nobody downloaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmgap.generators import ControlNetGenerator, ImageToImageGenerator, InpaintingGenerator
from tests.support.hostile import Hostile
from tests.support.single_file import save_single_file


@pytest.fixture
def copied(tiny_sd, tmp_path):
    return shutil.copytree(tiny_sd, tmp_path / 'sd')


def half(folder):
    for path in list(folder.rglob('*.safetensors')):
        path.rename(path.with_suffix('.fp16.safetensors'))
    return str(folder)


def test_only_the_fp16_variant(copied, tiny_sd, tiny_controlnet, tmp_path):
    whole = InpaintingGenerator(str(tiny_sd))
    with pytest.raises(FileNotFoundError, match="no weights of variant='fp16'"):
        InpaintingGenerator(str(copied), variant='fp16')
    folder = half(copied)
    with pytest.raises(FileNotFoundError, match=r"are of variant \['fp16'\]: set variant='fp16'"):
        InpaintingGenerator(folder)
    assert InpaintingGenerator(folder, variant='fp16').fingerprint() == whole.fingerprint()
    control = half(shutil.copytree(tiny_controlnet, tmp_path / 'control'))
    with pytest.raises(FileNotFoundError, match=r"controlnet=.*: set variant='fp16'"):
        ControlNetGenerator(folder, control, variant='fp16')
    made = ControlNetGenerator(folder, dict(path=control, variant='fp16'), variant='fp16')
    assert made.settings() == ControlNetGenerator(str(tiny_sd), str(tiny_controlnet)).settings()


def test_parts_that_are_not_there(copied, tiny_sd):
    """The index names them; no generator needs them."""
    path = copied / 'model_index.json'
    index = json.loads(path.read_text())
    index['_class_name'] = 'StableDiffusionPipeline'
    index['safety_checker'] = ['stable_diffusion', 'StableDiffusionSafetyChecker']
    index['feature_extractor'] = ['transformers', 'CLIPImageProcessor']
    index['image_encoder'] = ['transformers', 'CLIPVisionModelWithProjection']
    path.write_text(json.dumps(index))
    for kind in (InpaintingGenerator, ImageToImageGenerator):
        assert kind(str(copied)).fingerprint() == kind(str(tiny_sd)).fingerprint()


def test_a_single_file(tiny_sd, tiny_controlnet, tmp_path):
    """Its weights are those of the folder that it was made from."""
    (tmp_path / 'mine').mkdir()
    file = str(save_single_file(tiny_sd, tmp_path / 'mine' / 'one.safetensors'))
    config = shutil.copytree(tiny_sd, tmp_path / 'config')
    for path in config.rglob('*.safetensors'):  # its weights are not needed
        path.unlink()
    for kind in (InpaintingGenerator, ImageToImageGenerator):
        made = kind(file, config=str(config))
        assert made.fingerprint() == kind(str(tiny_sd)).fingerprint()
    made = ControlNetGenerator(file, str(tiny_controlnet), config=str(config))
    assert made.settings() == ControlNetGenerator(str(tiny_sd), str(tiny_controlnet)).settings()
    for model, settings, kind, words in (
        (file, dict(config=str(tmp_path / 'no')), FileNotFoundError, 'neither a folder nor a hub'),
        (file, dict(config=str(config), variant='fp16'), ValueError, 'is one file'),
        (file, dict(config='mmgap://toybirds-sd'), ValueError, 'or not of the kind of config='),
        (str(tiny_sd), dict(config=str(config)), ValueError, 'is for a single file'),
        (str(tmp_path / 'mine'), {}, ValueError, r"holds \['one.safetensors'\]: .* give that file"),
        (file.replace('one', 'two'), {}, FileNotFoundError, 'there is no such file'),
    ):
        with pytest.raises(kind, match=words):
            InpaintingGenerator(model, **settings)


@pytest.mark.parametrize('name', ['dtype', 'autocast'])
@pytest.mark.parametrize('value', ['bf16', 'int8', 'nothing'])
def test_unknown_dtypes_before_anything_loads(name, value):
    words = f"{name} must be one of .*'bfloat16', 'float16'.*, got '{value}'"
    for kind in (InpaintingGenerator, ImageToImageGenerator):
        with pytest.raises(ValueError, match=words):
            kind('no/such-model', **{name: value})
    with pytest.raises(ValueError, match=words):
        ControlNetGenerator('no/such-model', 'no/controlnet', **{name: value})


@pytest.mark.parametrize('part', ['unet/diffusion_pytorch_model', 'text_encoder/model'])
def test_weights_that_would_run_code(part, copied, tmp_path):
    path = copied / f'{part}.safetensors'
    state = load_file(path)
    path.unlink()
    state['extra'] = Hostile(tmp_path / 'ran')
    bin = path.with_name('pytorch_model.bin' if 'text' in part else f'{path.stem}.bin')
    torch.save(state, bin)
    torch.load(bin, weights_only=False)
    (tmp_path / 'ran').rmdir()  # it would run
    with pytest.raises(ValueError, match='damaged or would run code, which is not done'):
        InpaintingGenerator(str(copied))
    assert not (tmp_path / 'ran').exists()
