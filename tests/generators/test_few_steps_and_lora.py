# SPDX-License-Identifier: Apache-2.0
"""Schedulers that need few steps, and LoRA weights: what distilled models come with."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from mmgap.generators import InpaintingGenerator
from mmgap.sources import SourceSet
from tests.support.tiny import save_tiny_pipeline

SCHEDULERS = dict(
    lcm=dict(type='LCMScheduler'),
    turbo=dict(type='EulerAncestralDiscreteScheduler', timestep_spacing='trailing'),
    trailing=dict(type='DDIMScheduler', timestep_spacing='trailing'),
)


def stock(folder, condition, embeds, seeds, steps, scheduler=None, lora=None, scale=1.0):
    """What a plain pipeline draws, with its LoRA beside the weights instead of in them."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipe.to(embeds.device)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        settings = dict(scheduler)
        kind = getattr(diffusers, settings.pop('type'))
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    if lora is not None:
        pipe.load_lora_weights(lora, adapter_name='a')
        pipe.set_adapters(['a'], [scale])
    return pipe(
        image=condition.images.float() / 255,
        mask_image=(~condition.masks).float(),
        height=condition.images.shape[-2],
        width=condition.images.shape[-1],
        strength=1.0,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        prompt_embeds=embeds,
        output_type='pt',
    ).images


@pytest.mark.parametrize('steps', [1, 4])
@pytest.mark.parametrize('name', SCHEDULERS)
def test_few_steps_without_guidance(name, steps, tiny_sd, drawn, tolerance):
    generator = InpaintingGenerator(
        str(tiny_sd), guidance_scale=1.0, scheduler=SCHEDULERS[name], gradient=dict(checkpoint=True)
    )
    condition = SourceSet(drawn, generator.size).load([0, 3])
    prompt = generator.prompts.random_prompt(3, seed=5, id='p')
    images = generator.draw(condition, generator.prompts.encode([prompt] * 2), [1, 2], steps)
    embeds = generator.prompts.encode([prompt] * 2).detach()
    reference = stock(tiny_sd, condition, embeds, [1, 2], steps, SCHEDULERS[name])
    assert (images - reference).abs().max() <= tolerance
    (gradient,) = torch.autograd.grad(images.sum(), prompt.embeddings)
    assert torch.isfinite(gradient).all() and gradient.any()


@pytest.fixture(scope='module')
def lora(tmp_path_factory, tiny_sd):
    """LoRA weights of the UNet, as they are saved by diffusers."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionInpaintPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=['to_q', 'to_k', 'to_v']))
    torch.manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if 'lora_' in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp('lora')
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    pipe.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_lora_equals_the_stock_pipeline(scale, lora, tiny_sd, drawn, tolerance):
    settings = dict(guidance_scale=1.0)
    generator = InpaintingGenerator(
        str(tiny_sd), lora=dict(path=str(lora), scale=scale), **settings
    )
    plain = InpaintingGenerator(str(tiny_sd), **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3])
    prompt = generator.prompts.random_prompt(3, seed=5, id='p')
    with torch.no_grad():
        embeds = generator.prompts.encode([prompt] * 2)
        images = generator.draw(condition, embeds, [1, 2], 3)
        reference = stock(tiny_sd, condition, embeds, [1, 2], 3, lora=lora, scale=scale)
        assert (images - reference).abs().max() <= tolerance
        assert (images - plain.draw(condition, embeds, [1, 2], 3)).abs().max() > 1e-3
    assert generator.fingerprint() != plain.fingerprint()


def test_bad_lora(tmp_path, lora, tiny_sd):
    with pytest.raises(FileNotFoundError, match='nothing.* is neither a folder'):
        InpaintingGenerator(str(tiny_sd), lora=str(tmp_path / 'nothing'))
    other = save_tiny_pipeline(tmp_path / 'other', width=16)
    with pytest.raises(ValueError, match='does not fit the model'):
        InpaintingGenerator(str(other), lora=[str(lora)])
