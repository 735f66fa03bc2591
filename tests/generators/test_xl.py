# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion XL as a generator: against the stock pipelines, its gradient, a search."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from mmengine.device import get_device
from PIL import Image
from safetensors.torch import load_file

from mmgap.feedback import AdversarialLoss, FeedbackBatch, InversionGuidance, TextGuidance
from mmgap.generators import ControlNetGenerator, ImageToImageGenerator, InpaintingGenerator
from mmgap.prompts import PromptBank
from mmgap.search import SearchSettings, initial_prompts
from mmgap.sources import DepthSourceSet, SourceSet
from tests.support.tiny import XL_ADDED, XL_WIDTHS, save_tiny_controlnet, save_tiny_xl
from tests.support.tiny_search import make

SEEDS, STEPS = [11, 12], 2


@pytest.fixture(scope='module')
def tiny_xl_9(tmp_path_factory):
    return save_tiny_xl(tmp_path_factory.mktemp('xl9'), in_channels=9)


@pytest.fixture(scope='module')
def xl_controlnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp('xl_controlnet')
    return save_tiny_controlnet(folder, width=sum(XL_WIDTHS), **XL_ADDED)


def stock_images(kind, folder, given, bank, prompt, **settings):
    """What a plain pipeline draws from prompt text, one by one.

    Args:
        given: For each image, the pipeline's arguments made of its source.
        prompt: A sentence, or a soft prompt that is saved in the folder ``bank`` and loaded.
    """
    loaded = {k: settings.pop(k) for k in ('controlnet', 'torch_dtype') if k in settings}
    pipe = kind.from_pretrained(folder, add_watermarker=False, **loaded)
    pipe.to(get_device())
    pipe.set_progress_bar_config(disable=True)
    text = prompt
    if not isinstance(prompt, str):
        text, parts = prompt.text, load_file(PromptBank(bank).add(prompt, {}))
        for name, number in (('clip_l', ''), ('clip_g', '_2')):
            pipe.load_textual_inversion(
                parts[name],
                token=prompt.placeholder,
                tokenizer=getattr(pipe, f'tokenizer{number}'),
                text_encoder=getattr(pipe, f'text_encoder{number}'),
            )
    images = [
        pipe(
            prompt=text,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type='pt',
            height=16,
            width=16,
            **source,
            **settings,
        ).images[0]
        for source, seed in zip(given, SEEDS, strict=True)
    ]
    return torch.stack(images)


def assert_equal(generator, condition, reference, tolerance):
    """A sentence and a soft prompt give the images that ``reference`` gives for them."""
    words = generator.prompts.text_prompt('a bird, red', 'words')
    soft = generator.prompts.random_prompt(3, seed=5, id='gap-A-0', template='a {} b!')
    for prompt, told in ((words, 'a bird, red'), (soft, soft)):
        expected = reference(told)
        for gradient in (True, False):  # the second time sources come from the cache
            with torch.set_grad_enabled(gradient):
                embeds = generator.prompts.encode([prompt] * 2)
                images = generator.draw(condition, embeds, SEEDS, STEPS)
            assert images.requires_grad == gradient
            assert (images - expected).abs().max() <= tolerance


@pytest.mark.parametrize('channels, strength, eta', [(4, 1.0, 1.0), (9, 0.7, 0.0)])
def test_inpainting_equals_the_stock_pipeline(
    channels, strength, eta, tiny_xl, tiny_xl_9, drawn, tmp_path, tolerance
):
    folder = tiny_xl if channels == 4 else tiny_xl_9
    settings = dict(guidance_scale=5.0, strength=strength, eta=eta, negative_prompt='x y')
    generator = InpaintingGenerator(str(folder), gradient=dict(checkpoint=True), **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3])
    given = [
        dict(
            image=Image.fromarray(image.permute(1, 2, 0).numpy()),
            mask_image=Image.fromarray((~mask[0]).numpy().astype(np.uint8) * 255),
        )
        for image, mask in zip(condition.images, condition.masks, strict=True)
    ]
    stock = partial(stock_images, StableDiffusionXLInpaintPipeline, folder, given, tmp_path)
    assert_equal(generator, condition, partial(stock, **settings), tolerance)


@pytest.mark.parametrize('negative, zeros', [(None, True), (None, False), ('', True)])
def test_image_to_image_equals_the_stock_pipeline(
    negative, zeros, tiny_xl, drawn, tmp_path, tolerance
):
    """Without a negative prompt too, where the model has zeros or the empty sentence for it."""
    folder = tmp_path / 'xl'
    folder.symlink_to(tiny_xl)
    if not zeros:
        folder = tmp_path / 'xl_without'
        pipe = StableDiffusionXLInpaintPipeline.from_pretrained(tiny_xl, add_watermarker=False)
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
        pipe.save_pretrained(folder)
    settings = dict(guidance_scale=3.0, strength=0.5, eta=0.5)
    generator = ImageToImageGenerator(str(folder), negative_prompt=negative, **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3])
    given = [dict(image=condition.images[i : i + 1].float() / 255) for i in range(2)]
    stock = partial(stock_images, StableDiffusionXLImg2ImgPipeline, folder, given, tmp_path)
    stock = partial(stock, negative_prompt=negative, **settings)
    assert_equal(generator, condition, stock, tolerance)


@pytest.mark.parametrize('strength, guidance_scale', [(1.0, 5.0), (0.7, 1.0)])
def test_controlnet_equals_the_stock_pipelines(
    strength, guidance_scale, tiny_xl, xl_controlnet, drawn_depth, tmp_path, tolerance
):
    settings = dict(guidance_scale=guidance_scale, eta=0.5)
    generator = ControlNetGenerator(
        str(tiny_xl), str(xl_controlnet), strength=strength, conditioning_scale=0.8, **settings
    )
    condition = DepthSourceSet(drawn_depth, generator.size).load([0, 3])
    control = generator.condition_image(condition.depth)
    given = [dict(image=control[i : i + 1]) for i in range(2)]
    kind = StableDiffusionXLControlNetPipeline
    if strength < 1:
        sources = condition.images.float() / 255
        given = [
            dict(image=sources[i : i + 1], control_image=g['image'], strength=strength)
            for i, g in enumerate(given)
        ]
        kind = StableDiffusionXLControlNetImg2ImgPipeline
    settings |= dict(controlnet=ControlNetModel.from_pretrained(xl_controlnet))
    settings |= dict(controlnet_conditioning_scale=0.8)
    stock = partial(stock_images, kind, tiny_xl, given, tmp_path)
    assert_equal(generator, condition, partial(stock, **settings), tolerance)


def assert_gradient(embeddings, evaluate, size, rel):
    """The gradient to the part for each encoder equals a finite difference along it."""
    (gradient,) = torch.autograd.grad(evaluate(), embeddings)
    start = embeddings.detach().clone()
    parts = torch.eye(2).repeat_interleave(torch.tensor(XL_WIDTHS), dim=1)
    for part in parts.to(gradient.device):
        direction, values = gradient * part, []
        assert direction.abs().sum(dim=1).min() > 0
        direction = direction / direction.norm()
        with torch.no_grad():
            for sign in (1, -1):
                embeddings.copy_(start + sign * size * direction)
                values.append(float(evaluate()))
            embeddings.copy_(start)
        expected = (values[0] - values[1]) / (2 * size)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=rel)


def test_bfloat16_draws_what_the_stock_pipeline_draws_in_it(tiny_xl, drawn, tmp_path):
    settings = dict(strength=0.5, guidance_scale=3.0)
    generator = ImageToImageGenerator(str(tiny_xl), dtype='bfloat16', **settings)
    condition = SourceSet(drawn, generator.size).load([0, 3])
    prompt = generator.prompts.text_prompt('a bird', 'words')
    with torch.no_grad():
        images = generator.draw(condition, generator.prompts.encode([prompt] * 2), SEEDS, STEPS)
    given = [dict(image=condition.images[i : i + 1].float() / 255) for i in range(2)]
    settings.update(torch_dtype=torch.bfloat16)
    stock = (StableDiffusionXLImg2ImgPipeline, tiny_xl, given, tmp_path, 'a bird')
    reference = stock_images(*stock, **settings)
    assert (images.float() - reference.float()).abs().max() < 0.05
    other = generator.draw(condition, generator.prompts.encode([prompt] * 2), [1, 2], STEPS)
    assert (other.float() - reference.float()).abs().max() > 0.2


def test_gradient_of_images_equals_finite_differences(tiny_xl, drawn):
    generator = InpaintingGenerator(str(tiny_xl), dtype='float64', guidance_scale=3.0, eta=0.5)
    condition = SourceSet(drawn, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 3, 'p').double()
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(condition.images.shape, generator=rng, dtype=torch.float64)
    weights = weights.to(generator.device)

    def evaluate():
        embeds = generator.prompts.encode([prompt]).expand(2, -1, -1)
        return (generator(condition, embeds, SEEDS, STEPS) * weights).mean()

    assert_gradient(prompt.embeddings, evaluate, size=1e-4, rel=1e-3)


def test_inversion_guidance(tiny_xl, drawn, monkeypatch):
    """The UNet is told what the pipeline tells it of an image of this size; gradient as it is."""
    generator = InpaintingGenerator(str(tiny_xl), dtype='float64')
    term = InversionGuidance(str(drawn.infos[0]['img_path']).rpartition('/')[0])
    term.prepare(generator, ('a', 'b'))
    prompt = generator.prompts.random_prompt(2, 0, 'x').double()

    def evaluate():
        hidden = generator.prompts.encode([prompt, prompt])
        return term(FeedbackBatch(hidden, torch.tensor([0, 1]), [5, 6], [0, 1])).sum()

    # Its values are float32.
    assert_gradient(prompt.embeddings, evaluate, size=1e-2, rel=2e-2)
    told, forward = [], generator.pipeline.unet.forward

    def record(*args, **kwargs):
        told.append({k: v[-1:] for k, v in kwargs['added_cond_kwargs'].items()})
        return forward(*args, **kwargs)

    monkeypatch.setattr(generator.pipeline.unet, 'forward', record)
    with torch.no_grad():
        evaluate()
        condition = SourceSet(drawn, generator.size).load([0])
        generator(condition, generator.prompts.encode([prompt]), [0], 1)
    assert set(told[0]) == set(told[1])
    for name, value in told[1].items():
        torch.testing.assert_close(told[0][name], value)
    kept, noised = [], DDPMScheduler.add_noise
    answer = type('Answer', (), dict(sample=property(lambda _: kept[-1])))

    def noted(self, latent, noise, time):
        kept.append(noise)
        return noised(self, latent, noise, time)

    monkeypatch.setattr(DDPMScheduler, 'add_noise', noted)
    monkeypatch.setattr(generator.pipeline.unet, 'forward', lambda *_, **__: answer())
    assert evaluate() == 0


def test_a_search(tiny_xl, drawn, tmp_path):
    generator = InpaintingGenerator(str(tiny_xl), guidance_scale=3.0)
    sources = SourceSet(drawn, generator.size)
    guidance = TextGuidance(['a b', 'c d'], assign='turn', weight=20.0)
    inversion = InversionGuidance(str(drawn.infos[0]['img_path']).rpartition('/')[0], end=1)
    terms = [AdversarialLoss('flip', weight=0.1), guidance, inversion]
    for term in terms:
        term.prepare(generator, sources.classes)
    search, prompts = make(generator, sources, terms, steps=3, images_per_prompt=1)
    networks = generator._networks()
    before = [v.clone() for network in networks for v in network.state_dict().values()]
    starts = [p.embeddings.detach().clone() for p in prompts]

    def distances(chosen=prompts):
        with torch.no_grad():
            hidden = generator.prompts.encode(chosen)
            return guidance(FeedbackBatch(hidden, torch.tensor([0, 1]), [0, 1], [0, 1]))

    far = distances()
    meant = [generator.prompts.text_prompt(text, 'p') for text in ('a b', 'c d')]
    assert (distances(meant) < 1e-8).all() and (distances(meant[::-1]) > 1e-3).all()
    bank = PromptBank(tmp_path / 'bank')
    found = search.run(prompts, tmp_path / 'search.safetensors', bank)
    assert (distances() < far).all()
    after = [v for network in networks for v in network.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for result, start in zip(found, starts, strict=True):
        moved = (result.prompt.embeddings.detach() - start).split(XL_WIDTHS, dim=1)
        assert all(part.abs().sum(dim=1).min() > 0 for part in moved)
        path = tmp_path / 'bank' / f'{result.prompt.id}.safetensors'
        assert [load_file(path)[k].shape[1] for k in ('clip_l', 'clip_g')] == list(XL_WIDTHS)
        about = json.loads(path.with_suffix('.json').read_text())
        assert about['generator'] == generator.fingerprint()
    # A found prompt can be where another search begins, and is saved as one of this model again.
    (again,) = initial_prompts(
        generator.prompts, ('a',), SearchSettings(prompts_per_class=1, tokens=4, init=str(path))
    )
    assert torch.equal(again.embeddings[:2].cpu(), found[-1].prompt.embeddings.cpu())
    assert set(load_file(bank.add(again, {}))) == {'clip_l', 'clip_g'}


def test_drawing_under_autocast_leaves_the_weights(tiny_xl, drawn):
    """The stock pipeline takes the VAE back to float32 where it encodes."""
    generator = InpaintingGenerator(str(tiny_xl), autocast='bfloat16')
    before = generator.fingerprint()
    condition = generator.sources(drawn).load([0, 1])
    prompt = generator.prompts.random_prompt(2, seed=1, id='a')
    with torch.no_grad():
        generator(condition, generator.prompts.encode([prompt] * 2), SEEDS, STEPS)
    assert generator.fingerprint() == before
    assert {p.dtype for p in generator.pipeline.vae.decoder.conv_in.parameters()} == {
        torch.bfloat16
    }


def test_fingerprint_names_both_text_encoders(tiny_xl):
    generator = InpaintingGenerator(str(tiny_xl))
    first = generator.fingerprint()
    for network in (generator.pipeline.text_encoder, generator.pipeline.text_encoder_2):
        assert not any(p.requires_grad for p in network.parameters()) and not network.training
        table = network.get_input_embeddings().weight
        table[0, 0] += 1
        assert generator.fingerprint() != first
        table[0, 0] -= 1
    other = InpaintingGenerator(str(tiny_xl), negative_prompt='')
    assert other.fingerprint() != first  # zeros are not the empty sentence


def test_models_that_cannot_be_generators(
    tiny_xl, tiny_sd, xl_controlnet, tiny_controlnet, tmp_path
):
    index = json.loads((tiny_xl / 'model_index.json').read_text())

    def folder(name, **changed):
        path = tmp_path / name
        path.mkdir()
        (path / 'model_index.json').write_text(json.dumps(index | changed))
        return str(path)

    refiner = dict(_class_name='StableDiffusionXLImg2ImgPipeline', text_encoder=[None, None])
    with pytest.raises(ValueError, match='XL the base model, not the refiner'):
        ImageToImageGenerator(folder('refiner', **refiner, requires_aesthetics_score=True))
    flux = dict(_class_name='FluxPipeline', text_encoder_2=['transformers', 'T5EncoderModel'])
    with pytest.raises(ValueError, match=r"flux' \(FluxPipeline\) cannot be a generator"):
        InpaintingGenerator(folder('flux', **flux))
    with pytest.raises(ValueError, match="overflows in dtype='float16'.* take dtype='bfloat16'"):
        InpaintingGenerator(str(tiny_xl), dtype='float16')
    with pytest.raises(ValueError, match='another base model .* cross_attention_dim is 32, .* 80'):
        ControlNetGenerator(str(tiny_xl), str(tiny_controlnet))
    with pytest.raises(ValueError, match='another base model .* cross_attention_dim is 80, .* 32'):
        ControlNetGenerator(str(tiny_sd), str(xl_controlnet))
    plain = save_tiny_controlnet(tmp_path / 'plain', width=sum(XL_WIDTHS))
    with pytest.raises(ValueError, match='its addition_embed_type is None, the UNet has text_time'):
        ControlNetGenerator(str(tiny_xl), str(plain))
    prompt = InpaintingGenerator(str(tiny_sd)).prompts.random_prompt(2, 0, 'other')
    path = PromptBank(tmp_path / 'bank').add(prompt, {})
    encoder = InpaintingGenerator(str(tiny_xl)).prompts
    with pytest.raises(ValueError, match='width 32, the text encoder needs 80'):
        initial_prompts(encoder, ('a',), SearchSettings(init=str(path)))
