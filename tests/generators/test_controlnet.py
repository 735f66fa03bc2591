# SPDX-License-Identifier: Apache-2.0
"""ControlNet against the stock pipelines, its gradient, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
)
from mmengine.device import get_device
from safetensors.torch import load_file

from mmgap.generators import ControlNetGenerator
from mmgap.prompts import PromptBank
from mmgap.sources import DepthSourceSet, SourceSet
from tests.support.tiny import save_tiny_controlnet

NEGATIVE = 'x y'
STEPS = 5


def stock_images(model, controlnet, condition, prompt, path, seeds, strength, **settings):
    """What plain diffusers pipelines draw from prompt text, one by one."""
    kinds = (StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline)
    pipe = kinds[strength == 1].from_pretrained(
        model, controlnet=ControlNetModel.from_pretrained(controlnet), safety_checker=None
    )
    pipe.to(get_device())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(str(path), local_files_only=True)
    images = []
    for i, seed in enumerate(seeds):
        depth = condition.depth[i]
        known = depth > 0
        inverse = torch.where(known, 1 / depth, 0)
        low, high = inverse[known].min(), inverse.max()
        control = torch.where(known, (inverse - low) / (high - low), 0)
        given = dict(image=control.expand(1, 3, -1, -1))
        if strength < 1:
            source = condition.images[i : i + 1].float() / 255
            given = dict(image=source, control_image=given['image'], strength=strength)
        out = pipe(
            prompt=prompt,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type='pt',
            height=depth.shape[-2],
            width=depth.shape[-1],
            **given,
            **settings,
        )
        images.append(out.images[0])
    return torch.stack(images)


@pytest.mark.parametrize('guidance_scale', [1.0, 7.0])
@pytest.mark.parametrize('strength', [1.0, 0.6])
@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_images_equal_the_stock_pipelines(
    guidance_scale, strength, eta, tiny_sd, tiny_controlnet, drawn_depth, tmp_path, tolerance
):
    settings = dict(guidance_scale=guidance_scale, eta=eta)
    generator = ControlNetGenerator(
        str(tiny_sd),
        str(tiny_controlnet),
        negative_prompt=NEGATIVE,
        strength=strength,
        conditioning_scale=0.8,
        **settings,
    )
    condition = DepthSourceSet(drawn_depth, generator.size).load([0, 3, 4])
    prompt = generator.prompts.random_prompt(3, seed=5, id='gap-a-0', template='a {} b')
    path = PromptBank(tmp_path).add(prompt, {})
    seeds = [11, 12, 13]
    embeds = generator.prompts.encode([prompt] * 3)
    folders = (tiny_sd, tiny_controlnet)
    settings['controlnet_conditioning_scale'] = 0.8
    reference = stock_images(*folders, condition, prompt.text, path, seeds, strength, **settings)
    with torch.no_grad():
        images = generator(condition, embeds, seeds, STEPS)
    assert (images - reference).abs().max() <= tolerance
    with_gradient = generator(condition, embeds, seeds, STEPS)
    assert (with_gradient - reference).abs().max() <= tolerance
    assert with_gradient.requires_grad


def objective(generator, condition, prompt, weights):
    embeds = generator.prompts.encode([prompt]).expand(len(condition), -1, -1)
    return (generator(condition, embeds, [7, 8], 4) * weights).mean()


def gradient_of(folders, drawn_depth, **settings):
    generator = ControlNetGenerator(
        *map(str, folders), dtype='float64', guidance_scale=3.0, **settings
    )
    condition = DepthSourceSet(drawn_depth, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    weights = torch.randn(
        condition.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(generator.device)
    loss = objective(generator, condition, prompt, weights)
    (gradient,) = torch.autograd.grad(loss, prompt.embeddings)
    return gradient, lambda: objective(generator, condition, prompt, weights), prompt


@pytest.mark.parametrize('strength', [1.0, 0.6])
def test_gradient_equals_finite_differences(strength, tiny_sd, tiny_controlnet, drawn_depth):
    settings = dict(strength=strength, eta=0.5)
    gradient, evaluate, prompt = gradient_of((tiny_sd, tiny_controlnet), drawn_depth, **settings)
    direction, size, values = gradient / gradient.norm(), 1e-4, []
    with torch.no_grad():
        start = prompt.embeddings.clone()
        for sign in (1, -1):
            prompt.embeddings.copy_(start + sign * size * direction)
            values.append(float(evaluate()))
    expected = (values[0] - values[1]) / (2 * size)
    assert float(gradient.norm()) == pytest.approx(expected, rel=1e-3)


def test_gradient_modes(tiny_sd, tiny_controlnet, drawn_depth):
    """The ControlNet's calls are counted with the UNet's."""
    found = {}
    for name, policy in dict(
        full={},
        all=dict(mode='last_k', k=4),
        checkpointed=dict(checkpoint=True),
        last=dict(mode='last_k', k=1),
    ).items():
        folders = (tiny_sd, tiny_controlnet)
        found[name] = gradient_of(folders, drawn_depth, gradient=policy)[0]
    torch.testing.assert_close(found['all'], found['full'])
    torch.testing.assert_close(found['checkpointed'], found['full'], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found['last'], found['full'])


def test_depth_decides_the_image(tiny_sd, tiny_controlnet, drawn_depth):
    generator = ControlNetGenerator(str(tiny_sd), str(tiny_controlnet))
    sources = DepthSourceSet(drawn_depth, generator.size)
    embeds = generator.prompts.encode([generator.prompts.text_prompt('a', id='words')])
    with torch.no_grad():
        one, other = (generator(sources.load([i]), embeds, [3], 3) for i in (0, 1))
    assert (one - other).abs().max() > 1e-3


def test_fingerprint_names_the_controlnet(tiny_sd, tiny_controlnet, tmp_path):
    def name(**settings):
        return ControlNetGenerator(str(tiny_sd), **settings).fingerprint()

    first = name(controlnet=str(tiny_controlnet))
    assert first == name(
        controlnet=str(tiny_controlnet), condition_image=dict(type='mmgap.InverseDepth')
    )
    assert first != name(controlnet=str(tiny_controlnet), conditioning_scale=0.5)
    linear = dict(type='mmgap.LinearDepth')
    assert first != name(controlnet=str(tiny_controlnet), condition_image=linear)
    other = save_tiny_controlnet(tmp_path / 'other')
    path = other / 'diffusion_pytorch_model.safetensors'
    weights = load_file(path)
    next(iter(weights.values())).add_(1)
    from safetensors.torch import save_file

    save_file(weights, path, metadata=dict(format='pt'))
    assert first != name(controlnet=str(other))


def test_what_does_not_fit(tiny_sd, tiny_controlnet, drawn, tmp_path):
    with pytest.raises(FileNotFoundError, match="controlnet='/no/such/folder'"):
        ControlNetGenerator(str(tiny_sd), '/no/such/folder')
    wide = save_tiny_controlnet(tmp_path / 'wide', width=64)
    with pytest.raises(ValueError, match='another base model .* cross_attention_dim is 64, .* 32'):
        ControlNetGenerator(str(tiny_sd), str(wide))
    with pytest.raises(ValueError, match='is a UNet2DConditionModel, not a ControlNetModel'):
        ControlNetGenerator(str(tiny_sd), str(tiny_sd / 'unet'))
    folders = (str(tiny_sd), str(tiny_controlnet))
    with pytest.raises(ValueError, match='conditioning_scale must not be negative, got -1'):
        ControlNetGenerator(*folders, conditioning_scale=-1)
    with pytest.raises(ValueError, match='strength must be in'):
        ControlNetGenerator(*folders, strength=1.5)
    generator = ControlNetGenerator(*folders)
    masked = SourceSet(drawn, generator.size).load([0])
    embeds = generator.prompts.encode([generator.prompts.text_prompt('a', id='words')])
    with pytest.raises(ValueError, match='needs conditions with depth'):
        generator(masked, embeds, [0], 3)
