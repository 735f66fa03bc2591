# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from mmengine.device import get_device
from PIL import Image

from mmgap.generators import InpaintingGenerator
from mmgap.prompts import PromptBank
from mmgap.sources import SourceSet
from tests.support.tiny import save_tiny_sd2

NEGATIVE = 'x y'


def stock_images(folder, condition, prompt, prompt_file, seeds, steps, **settings):
    """What a plain diffusers pipeline draws from PIL images and prompt text, one by one."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None).to(
        get_device()
    )
    pipe.set_progress_bar_config(disable=True)
    if prompt_file is not None:
        pipe.load_textual_inversion(str(prompt_file), local_files_only=True)
    images = []
    for image, mask, seed in zip(condition.images, condition.masks, seeds, strict=True):
        out = pipe(
            prompt=prompt,
            negative_prompt=NEGATIVE,
            image=Image.fromarray(image.permute(1, 2, 0).numpy()),
            mask_image=Image.fromarray((~mask[0]).numpy().astype(np.uint8) * 255),
            height=image.shape[-2],
            width=image.shape[-1],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type='pt',
            **settings,
        )
        images.append(out.images[0])
    return torch.stack(images)


@pytest.mark.parametrize('channels', [4, 9])
@pytest.mark.parametrize('guidance_scale', [1.0, 7.0])
@pytest.mark.parametrize('strength', [1.0, 0.6])
@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_images_equal_the_stock_pipeline(
    channels, guidance_scale, strength, eta, tiny_sd, tiny_sd_9, drawn, tmp_path, tolerance
):
    folder = tiny_sd if channels == 4 else tiny_sd_9
    settings = dict(guidance_scale=guidance_scale, strength=strength, eta=eta)
    generator = InpaintingGenerator(str(folder), negative_prompt=NEGATIVE, **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3, 4])
    prompt = generator.prompts.random_prompt(3, seed=5, id='gap-a-0', template='a {} b')
    path = PromptBank(tmp_path).add(prompt, {})
    seeds = [11, 12, 13]
    embeds = generator.prompts.encode([prompt] * 3)
    reference = stock_images(folder, condition, prompt.text, path, seeds, 5, **settings)
    for _ in range(2):  # the second time everything comes from the caches
        with torch.no_grad():
            drawn_images = generator.draw(condition, embeds, seeds, 5)
        assert (drawn_images - reference).abs().max() <= tolerance
    with_gradient = generator.draw(condition, embeds, seeds, 5)
    assert (with_gradient - reference).abs().max() <= tolerance
    assert with_gradient.requires_grad


def test_stable_diffusion_2(drawn, tmp_path, tolerance):
    """It predicts velocities, not noise, and its tokenizer pads with a word."""
    folder = save_tiny_sd2(tmp_path / 'sd2')
    settings = dict(guidance_scale=4.0, strength=0.8)
    generator = InpaintingGenerator(str(folder), negative_prompt=NEGATIVE, **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3])
    prompt = generator.prompts.random_prompt(3, seed=5, id='gap-a-0')
    path = PromptBank(tmp_path).add(prompt, {})
    images = generator.draw(condition, generator.prompts.encode([prompt] * 2), [1, 2], 4)
    reference = stock_images(folder, condition, prompt.text, path, [1, 2], 4, **settings)
    assert (images - reference).abs().max() <= tolerance
    generator.pipeline.scheduler.register_to_config(prediction_type='epsilon')
    with torch.no_grad():
        noise = generator.draw(condition, generator.prompts.encode([prompt] * 2), [1, 2], 4)
    assert (noise - reference).abs().max() > 1e-2, 'the prediction type makes no difference here'


def test_text_prompt_equals_the_text(tiny_sd, drawn, tolerance):
    generator = InpaintingGenerator(str(tiny_sd), negative_prompt=NEGATIVE)
    condition = SourceSet(drawn, generator.size).load([1])
    prompt = generator.prompts.text_prompt('a bird, red', id='words')
    with torch.no_grad():
        images = generator.draw(condition, generator.prompts.encode([prompt]), [3], 4)
    reference = stock_images(tiny_sd, condition, 'a bird, red', None, [3], 4, guidance_scale=7.0)
    assert (images - reference).abs().max() <= tolerance


@pytest.mark.parametrize('precision', [{}, dict(autocast='bfloat16'), dict(dtype='bfloat16')])
def test_kept_pixels_are_the_resized_source(precision, tiny_sd, drawn):
    generator = InpaintingGenerator(str(tiny_sd), **precision)
    condition = SourceSet(drawn, generator.size).load(range(6))
    embeds = generator.prompts.encode([generator.prompts.random_prompt(2, 0, 'p')])
    with torch.no_grad():
        images = generator(condition, embeds.expand(6, -1, -1), range(6), 3)
    kept = (images * 255).round().to(torch.uint8).cpu()
    masks = condition.masks.expand_as(kept)
    assert torch.equal(kept[masks], condition.images[masks])
    assert not torch.equal(kept[~masks], condition.images[~masks])


def test_sample_depends_on_its_own_seed_only(tiny_sd, drawn):
    generator = InpaintingGenerator(str(tiny_sd), eta=1.0)
    sources = SourceSet(drawn, generator.size)
    prompts = [generator.prompts.random_prompt(2, i, f'p{i}') for i in range(4)]
    with torch.no_grad():
        embeds = generator.prompts.encode(prompts)
        together = generator(sources.load([0, 1, 2, 3]), embeds, [0, 1, 2, 3], 4)
        reverse = generator(sources.load([3, 2, 1, 0]), embeds.flip(0), [3, 2, 1, 0], 4).flip(0)
        alone = torch.cat(
            [
                generator(sources.load([i]), generator.prompts.encode([prompts[i]]), [i], 4)
                for i in range(4)
            ]
        )
    for other in (reverse, alone):
        assert ((together - other).abs() <= 1 / 255).float().mean() >= 0.999


def test_fingerprint_names_weights_and_settings(tiny_sd, tiny_sd_9):
    first = InpaintingGenerator(str(tiny_sd), eta=0.0)
    assert first.fingerprint() == InpaintingGenerator(str(tiny_sd), eta=0.0).fingerprint()
    assert first.fingerprint() != InpaintingGenerator(str(tiny_sd), eta=1.0).fingerprint()
    assert first.fingerprint() != InpaintingGenerator(str(tiny_sd_9), eta=0.0).fingerprint()


def test_scheduler_by_config(tiny_sd):
    generator = InpaintingGenerator(str(tiny_sd), scheduler=dict(type='EulerDiscreteScheduler'))
    assert type(generator.pipeline.scheduler).__name__ == 'EulerDiscreteScheduler'
    with pytest.raises(ValueError, match='NoScheduler'):
        InpaintingGenerator(str(tiny_sd), scheduler=dict(type='NoScheduler'))


def test_bad_models(tmp_path, tiny_sd):
    with pytest.raises(FileNotFoundError, match='no/such/folder'):
        InpaintingGenerator('/no/such/folder')
    with pytest.raises(FileNotFoundError, match='owner/name'):
        InpaintingGenerator('owner/name')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='model_index.json'):
        InpaintingGenerator(str(tmp_path / 'empty'))
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'model_index.json').write_text(
        '{"_class_name": "DDPMPipeline", "_diffusers_version": "0.42.1"}'
    )
    with pytest.raises(ValueError, match='not an inpainting pipeline'):
        InpaintingGenerator(str(tmp_path / 'other'))
    with pytest.raises(FileNotFoundError, match='mmgap://nothing'):
        InpaintingGenerator('mmgap://nothing')
    with pytest.raises(ValueError, match='strength'):
        InpaintingGenerator(str(tiny_sd), strength=0.0)


def test_bad_batches(tiny_sd, drawn):
    generator = InpaintingGenerator(str(tiny_sd), strength=0.2)
    condition = SourceSet(drawn, generator.size).load([0, 1])
    embeds = generator.prompts.encode([generator.prompts.random_prompt(2, 0, 'p')] * 2)
    with pytest.raises(ValueError, match='1 seeds'):
        generator(condition, embeds, [0], 5)
    with pytest.raises(ValueError, match='no denoising step'):
        generator(condition, embeds, [0, 1], 4)
    with pytest.raises(ValueError, match='generator draws'):
        generator(SourceSet(drawn, (8, 8)).load([0, 1]), embeds, [0, 1], 5)
