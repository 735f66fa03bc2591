# SPDX-License-Identifier: Apache-2.0
"""The packaged models: complete, small, loadable by the stock libraries, and at work."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmgap.toyworld import WORLD_VERSION, Scene, render
from mmgap.toyworld.splits import record
from mmgap.toyworld.tokenizer import CONTEXT_LENGTH, UNKNOWN, build_tokenizer
from mmgap.weights import FOLDER, resolve


@pytest.fixture(scope='module')
def pipe():
    from diffusers import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        resolve('mmgap://toybirds-sd'), safety_checker=None, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_hashes_and_size():
    frozen = json.loads((FOLDER / 'hashes.json').read_text())
    assert frozen['world_version'] == WORLD_VERSION
    files = {
        str(p.relative_to(FOLDER)): p
        for p in FOLDER.rglob('*')
        if p.is_file() and p.name != 'hashes.json'
    }
    assert set(files) == set(frozen['sha256'])
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == frozen['sha256'][name], name
    assert sum(p.stat().st_size for p in files.values()) <= 32 * 2**20
    controlnet = [p for name, p in files.items() if 'controlnet' in str(name)]
    assert 0 < sum(p.stat().st_size for p in controlnet) <= 8e6
    assert not [name for name in files if name.endswith(('.bin', '.pt', '.pth', '.pkl'))]


def test_tokenizer_round_trip(tmp_path, pipe):
    from transformers import CLIPTokenizer

    built = build_tokenizer()
    built.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    unknown = built.convert_tokens_to_ids(UNKNOWN)
    for text in (
        '',
        'a landbird in a forest at night, in fog',
        'Red striped curtain',
        'a penguin on the ocean',
        'comic, cartoon',
    ):
        ids = built(text).input_ids
        assert ids == loaded(text).input_ids == pipe.tokenizer(text).input_ids
        assert (unknown in ids) == ('penguin' in text or 'comic' in text)
    assert pipe.tokenizer.model_max_length == CONTEXT_LENGTH
    assert len(loaded('a landbird in a forest').input_ids) == 7
    loaded.add_tokens(['<soft>', '<soft>_1'])
    assert len(loaded('a landbird, <soft> <soft>_1').input_ids) == 7


def test_text_encoder_pools_at_the_end(pipe):
    config = pipe.text_encoder.config
    assert config.eos_token_id == pipe.tokenizer.eos_token_id != 2
    assert config.vocab_size == len(build_tokenizer())
    assert not pipe.scheduler.config.clip_sample


def test_autoencoder(pipe):
    images = np.stack([render(record('test', i).scene).image for i in range(24)])
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(x).latent_dist.mean
        y = pipe.vae.decode(latents).sample.clamp(-1, 1)
    assert latents.shape == (24, 4, 32, 32)
    assert -10 * np.log10(float(((x - y) / 2).pow(2).mean())) > 27
    assert 0.7 < float((latents * pipe.vae.config.scaling_factor).std()) < 1.4


def test_prompts_decide_what_is_drawn(pipe):
    """Pictures from a prompt look more like that place's renderings than like another's."""
    grey = [Image.new('RGB', (64, 64), (127, 127, 127))] * 8
    drawn = {}
    for place in ('forest', 'ocean'):
        drawn[place] = pipe(
            [f'a {place}'] * 8,
            image=grey,
            mask_image=[Image.new('L', (64, 64), 255)] * 8,
            height=64,
            width=64,
            num_inference_steps=5,
            guidance_scale=5.0,
            strength=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type='np',
        ).images.mean(0)
    real = {
        place: np.mean([render(Scene(None, place, seed=s)).image / 255 for s in range(8)], 0)
        for place in drawn
    }
    for place, other in (('forest', 'ocean'), ('ocean', 'forest')):
        gap = [np.abs(drawn[place] - real[p]).mean() for p in (place, other)]
        assert gap[0] < 0.6 * gap[1]


def test_backbone_fits_the_stock_class():
    mmpretrain_models = pytest.importorskip('mmpretrain.models')
    from mmengine.runner import CheckpointLoader

    state = CheckpointLoader.load_checkpoint('mmgap://toybirds-resnet18')
    assert all(k.startswith('backbone.') for k in state)
    backbone = mmpretrain_models.ResNet(
        depth=18, base_channels=32, stem_channels=32, deep_stem=True, out_indices=(3,)
    )
    backbone.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})


def test_clip_names_the_place():
    """open_clip reads model, preprocessing and tokenizer from the folder as it stands."""
    open_clip = pytest.importorskip('open_clip')
    name = f'local-dir:{FOLDER / "toybirds-clip"}'
    model, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    assert model.visual.preprocess_cfg['mean'] == model.visual.preprocess_cfg['std'] == [0.5] * 3
    places = ('ocean', 'lake', 'forest', 'bamboo', 'city', 'desert')
    images = np.stack([render(Scene(None, p, seed=s)).image for p in places for s in range(4)])
    with torch.no_grad():
        image = model.encode_image(
            torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, normalize=True
        )
        text = model.encode_text(tokenizer([f'a {p}' for p in places]), normalize=True)
    best = (image @ text.t()).argmax(1).numpy()
    assert np.mean(best == np.repeat(np.arange(len(places)), 4)) > 0.9
