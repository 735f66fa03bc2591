# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from mmgap.generators import InpaintingGenerator
from mmgap.generators.compilation import BLOCKS, outermost
from mmgap.sources import SourceSet


def draw(folder, drawn, **settings):
    generator = InpaintingGenerator(str(folder), guidance_scale=3.0, **settings)
    condition = SourceSet(drawn, generator.size).load([0, 1])
    prompt = generator.prompts.random_prompt(2, 0, 'p')
    embeds = generator.prompts.encode([prompt]).expand(2, -1, -1)
    images = generator(condition, embeds, [1, 2], 3)
    gradient = torch.autograd.grad(images.square().mean(), prompt.embeddings)[0]
    return generator, images.detach(), gradient


def test_without_a_compiler_it_runs_as_it_is(tiny_sd, drawn, monkeypatch):
    said = []

    def fail(*args, **kwargs):
        raise RuntimeError('Cannot find a working triton installation\nand more')

    monkeypatch.setattr(torch, 'compile', fail)
    logger = 'mmgap.generators.compilation.MMLogger.get_current_instance'
    monkeypatch.setattr(logger, lambda: type('Log', (), dict(warning=said.append, info=print)))
    generator, images, _ = draw(tiny_sd, drawn, compile=True)
    assert not generator.compiled and len(said) == 1
    assert 'cannot compile for' in said[0] and 'working triton installation)' in said[0]
    assert torch.equal(images, draw(tiny_sd, drawn)[1])


def test_blocks_are_called_through_what_is_compiled(tiny_sd, drawn, monkeypatch):
    """Each with its own arguments, also where blocks are checkpointed, and batches may vary."""
    calls, marked = [], set()

    def compile(call, dynamic=None):
        def counted(*args, **kwargs):
            calls.append(call)
            return call(*args, **kwargs)

        return counted

    monkeypatch.setattr(torch, 'compile', compile)
    monkeypatch.setattr(
        torch._dynamo, 'maybe_mark_dynamic', lambda value, place: marked.add((value.ndim, place))
    )
    gradient = dict(checkpoint='blocks')
    _, images, expected = draw(tiny_sd, drawn, gradient=gradient)
    assert not calls
    generator, compiled, found = draw(tiny_sd, drawn, gradient=gradient, compile=True)
    assert generator.compiled and torch.equal(images, compiled) and torch.equal(expected, found)
    networks = (generator.pipeline.unet, generator.pipeline.vae.decoder)
    blocks = [block for network in networks for block in outermost(network, BLOCKS)]
    assert {call.__self__ for call in calls if hasattr(call, '__self__')} == set(blocks)
    assert marked and {place for _, place in marked} == {0}


def test_all_of_the_work_is_in_the_blocks(tiny_sd):
    """What is left out is small: first and last convolutions and the embedding of time."""
    pipe = InpaintingGenerator(str(tiny_sd)).pipeline
    for network in (pipe.unet, pipe.vae.decoder):
        blocks = outermost(network, BLOCKS)
        inside = {id(p) for block in blocks for p in block.parameters()}
        left = [name for name, p in network.named_parameters() if id(p) not in inside]
        assert all(name.split('.')[0] in LEFT for name in left), left


LEFT = ('conv_in', 'conv_out', 'conv_norm_out', 'time_embedding')


@pytest.mark.slow  # minutes: what it tests is compiled
@pytest.mark.parametrize('checkpoint', [False, 'steps', 'blocks'])
def test_compiled_images_and_gradients_are_the_eager_ones(checkpoint, tiny_sd, drawn):
    gradient = dict(checkpoint=checkpoint)
    _, images, expected = draw(tiny_sd, drawn, gradient=gradient)
    generator, compiled, found = draw(tiny_sd, drawn, gradient=gradient, compile=True)
    assert generator.compiled
    assert ((images - compiled).abs() <= 1 / 255).float().mean() >= 0.999
    assert (found - expected).norm() <= 1e-2 * expected.norm()
    networks = (generator.pipeline.unet, generator.pipeline.vae)
    assert not any('_orig_mod' in name for network in networks for name in network.state_dict())
    assert generator.fingerprint() == draw(tiny_sd, drawn, gradient=gradient)[0].fingerprint()
