# SPDX-License-Identifier: Apache-2.0
"""Image to image against the stock pipeline, its gradient, sources without masks, its critic."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from mmengine.device import get_device

from mmgap.generators import ImageToImageGenerator, InpaintingGenerator
from mmgap.loop.parts import build_critic
from mmgap.prompts import PromptBank
from mmgap.sources import SourceSet

NEGATIVE, STEPS, SEEDS = 'x y', 5, [11, 12, 13]


def stock_images(folder, condition, prompt, path, strength, **settings):
    """What the plain diffusers pipeline draws from prompt text, one by one."""
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipe.to(get_device())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(str(path), local_files_only=True)
    images = [
        pipe(
            prompt=prompt,
            image=condition.images[i : i + 1].float() / 255,
            negative_prompt=NEGATIVE,
            strength=strength,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type='pt',
            **settings,
        ).images[0]
        for i, seed in enumerate(SEEDS)
    ]
    return torch.stack(images)


@pytest.mark.parametrize('guidance_scale', [1.0, 7.0])
@pytest.mark.parametrize('strength', [1.0, 0.6])
def test_images_equal_the_stock_pipeline(
    guidance_scale, strength, tiny_sd, drawn, tmp_path, tolerance
):
    settings = dict(guidance_scale=guidance_scale, eta=0.5)
    generator = ImageToImageGenerator(
        str(tiny_sd), strength=strength, negative_prompt=NEGATIVE, **settings
    )
    condition = SourceSet(drawn, generator.size).load([0, 3, 4])
    prompt = generator.prompts.random_prompt(3, seed=5, id='gap-a-0', template='a {} b')
    path = PromptBank(tmp_path).add(prompt, {})
    reference = stock_images(tiny_sd, condition, prompt.text, path, strength, **settings)
    embeds = generator.prompts.encode([prompt] * 3)
    for _ in range(2):  # the second time sources come from the cache
        images = generator(condition, embeds, SEEDS, STEPS)
        assert images.requires_grad
        assert (images - reference).abs().max() <= tolerance


def test_gradient_equals_finite_differences(tiny_sd, drawn):
    generator = ImageToImageGenerator(str(tiny_sd), dtype='float64', guidance_scale=3.0, eta=0.5)
    condition = SourceSet(drawn, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(condition.images.shape, generator=rng, dtype=torch.float64)
    weights = weights.to(generator.device)

    def objective() -> torch.Tensor:
        embeds = generator.prompts.encode([prompt]).expand(2, -1, -1)
        return (generator(condition, embeds, [7, 8], 4) * weights).mean()

    (gradient,) = torch.autograd.grad(objective(), prompt.embeddings)
    direction, size, values = gradient / gradient.norm(), 1e-4, []
    with torch.no_grad():
        start = prompt.embeddings.clone()
        for sign in (1, -1):
            prompt.embeddings.copy_(start + sign * size * direction)
            values.append(float(objective()))
    assert float(gradient.norm()) == pytest.approx((values[0] - values[1]) / (2 * size), rel=1e-3)


def test_sources_need_no_masks(tiny_sd, drawn):
    generator = ImageToImageGenerator(str(tiny_sd))
    masked = generator.sources(drawn).load([2])
    assert torch.equal(masked.masks, SourceSet(drawn, generator.size).load([2]).masks)
    for info in drawn.infos:
        del info['mask_path']
    plain = generator.sources(drawn).load([2])
    assert plain.masks.all() and torch.equal(plain.images, masked.images)
    with pytest.raises(ValueError, match="12 of 12 data infos .* have no 'mask_path'"):
        InpaintingGenerator(str(tiny_sd)).sources(drawn)


def test_a_critic_watches_unless_it_is_switched_off(tiny_sd):
    generator, classes = ImageToImageGenerator(str(tiny_sd)), ('a', 'b')
    with pytest.raises(ValueError, match='laion2b_s34b_b79k'):
        build_critic(None, generator, classes)  # offline its weights cannot be had
    assert build_critic(False, generator, classes) is None
    assert build_critic(None, InpaintingGenerator(str(tiny_sd)), classes) is None
