# SPDX-License-Identifier: Apache-2.0
"""Evaluations that are counted, against those that a draw by its definition needs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmgap.generators import ControlNetGenerator, ImageToImageGenerator, InpaintingGenerator
from mmgap.sources import DepthSourceSet, SourceSet
from tests.support.datasets import DrawnDataset, DrawnDepth
from tests.support.tiny import save_tiny_controlnet

UNET, DECODER, CONTROL = 'UNet2DConditionModel', 'decoder', 'ControlNetModel'
B, STEPS = 3, 4


@pytest.fixture(scope='module')
def make(tiny_sd, tmp_path_factory):
    """Of settings, a generator and what it is called with."""
    drawn = DrawnDataset(tmp_path_factory.mktemp('drawn'))

    def make(kind=InpaintingGenerator, guidance_scale=3.0, **settings):
        generator = kind(str(tiny_sd), size=16, guidance_scale=guidance_scale, **settings)
        condition = SourceSet(drawn, generator.size).load(list(range(B)))
        prompt = generator.prompts.random_prompt(2, 3, 'p')
        return generator, condition, prompt

    return make


def draw(generator, condition, prompt, gradient=False):
    """Draw once; returns what was counted meanwhile, and the gradient."""
    before = generator.evaluations.counts()
    with torch.set_grad_enabled(gradient):
        embeds = generator.prompts.encode([prompt] * B)
        images = generator(condition, embeds, range(B), STEPS)
    found = torch.autograd.grad(images.sum(), prompt.embeddings)[0] if gradient else None
    return generator.evaluations.since(before), found


def named(unet, decoder, **others):
    """Counts of (forward, backward) by network, without zeros."""
    both = {UNET: unet, DECODER: decoder, **others}
    ways = ('forward', 'backward')
    counts = {
        f'{name} {way}': count
        for name, pair in both.items()
        for way, count in zip(ways, pair, strict=True)
    }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize('guidance_scale, halves', [(3.0, 2), (1.0, 1)])
def test_calls_of_a_draw(guidance_scale, halves, make):
    generator, *given = make(guidance_scale=guidance_scale)
    counter = generator.evaluations
    assert counter.counts() == {} and counter.total({}) == 0
    forward, _ = draw(generator, *given)
    assert forward == named((halves * STEPS * B, 0), (B, 0))
    both, _ = draw(generator, *given, gradient=True)
    # The first step's half without the prompt is a constant.
    assert both == named((halves * STEPS * B, (halves * STEPS - halves + 1) * B), (B, B))
    everything = named((2 * halves * STEPS * B, (halves * STEPS - halves + 1) * B), (2 * B, B))
    assert counter.counts() == everything
    assert counter.since(counter.counts()) == {}
    assert counter.since(forward) == both
    # Forward counts once, backward twice more; the decoder by its share.
    drawn = 2 * halves * STEPS * B + 2 * (halves * STEPS - halves + 1) * B
    expected = drawn + 4 * B * counter.share(DECODER)
    assert counter.total(everything) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    'policy, backward',
    [
        (dict(mode='last_k', k=1), 1),
        (dict(mode='last_k', k=3), 1 + 2 + 2),
        (dict(mode='last_k', k=STEPS), 2 * STEPS - 1),
        (dict(mode='shortcut', step=2), 1),
    ],
)
def test_steps_without_gradient_are_only_counted_forward(policy, backward, make):
    counts, _ = draw(*make(gradient=policy), gradient=True)
    assert counts == named((2 * STEPS * B, backward * B), (B, B))


@pytest.mark.parametrize('checkpoint', ['steps', 'blocks'])
def test_what_is_computed_again_is_not_counted_again(checkpoint, make, monkeypatch):
    generator, *given = make(gradient=dict(checkpoint=checkpoint))
    convolution, calls = generator.pipeline.unet.conv_in, []
    convolution.register_forward_hook(lambda *_: calls.append(1))
    counts, _ = draw(generator, *given, gradient=True)
    assert len(calls) > STEPS + 1  # each step, the first in halves, and the backward pass's
    assert counts == named((2 * STEPS * B, (2 * STEPS - 1) * B), (B, B))


def operations(network, *args, **kwargs):
    """Of the network itself; the attention of CPUs is not in PyTorch's table."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(*args, **kwargs)
    return counter.get_total_flops()


def test_shares_are_those_of_the_networks_themselves(make):
    generator, condition, prompt = make()
    draw(generator, condition, prompt)
    unet, decoder = generator.pipeline.unet, generator.pipeline.vae.decoder
    latents = torch.randn(1, 4, 8, 8, device=generator.device)
    hidden = generator.prompts.encode([prompt]).detach()
    one = operations(unet, latents, torch.tensor(7), encoder_hidden_states=hidden)
    share = operations(decoder, latents) / one
    assert 0.01 < share < 100 and share != 1
    assert generator.evaluations.share(DECODER) == pytest.approx(share, rel=1e-6)
    assert generator.evaluations.share(UNET) == 1


@pytest.mark.parametrize('kind', [InpaintingGenerator, ImageToImageGenerator])
def test_a_part_of_the_strength_is_a_part_of_the_steps(kind, make):
    counts, _ = draw(*make(kind, strength=0.5), gradient=True)
    assert counts == named((2 * 2 * B, 3 * B), (B, B))


def test_a_controlnet_counts_by_its_share(tiny_sd, tiny_controlnet, tmp_path):
    generator = ControlNetGenerator(str(tiny_sd), str(tiny_controlnet), size=16)
    condition = DepthSourceSet(DrawnDepth(tmp_path), generator.size).load(list(range(B)))
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    counts, _ = draw(generator, condition, prompt, gradient=True)
    steps = (2 * STEPS * B, (2 * STEPS - 1) * B)
    assert counts == named(steps, (B, B), **{CONTROL: steps})
    latents = torch.randn(1, 4, 8, 8, device=generator.device)
    depth = torch.rand(1, 3, 16, 16, device=generator.device)
    hidden = generator.prompts.encode([prompt]).detach()
    pipe, text = generator.pipeline, dict(encoder_hidden_states=hidden)
    unet = operations(pipe.unet, latents, torch.tensor(7), **text)
    control = operations(pipe.controlnet, latents, torch.tensor(7), controlnet_cond=depth, **text)
    counter = generator.evaluations
    assert counter.share(CONTROL) == pytest.approx(control / unet, rel=1e-6)
    worth = (steps[0] + 2 * steps[1]) * (1 + control / unet) + 3 * B * counter.share(DECODER)
    assert counter.total(counts) == pytest.approx(worth, abs=1e-5)


def test_a_controlnet_that_sees_the_prompted_half_alone(tiny_sd, tmp_path):
    folder = save_tiny_controlnet(tmp_path / 'pooled', global_pool_conditions=True)
    generator = ControlNetGenerator(str(tiny_sd), str(folder), size=16)
    condition = DepthSourceSet(DrawnDepth(tmp_path), generator.size).load(list(range(B)))
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    counts, _ = draw(generator, condition, prompt, gradient=True)
    halves, whole = (2 * STEPS * B, (2 * STEPS - 1) * B), (STEPS * B, STEPS * B)
    assert counts == named(halves, (B, B), **{CONTROL: whole})


def test_a_denoising_loss_has_no_half_without_the_prompt(make):
    generator, _, prompt = make()
    before = generator.evaluations.counts()
    embeds = generator.prompts.encode([prompt] * B)
    loss = generator.denoising_loss(torch.rand(B, 3, 16, 16), embeds, range(B))
    torch.autograd.grad(loss.sum(), prompt.embeddings)
    assert generator.evaluations.since(before) == named((B, B), (0, 0))
