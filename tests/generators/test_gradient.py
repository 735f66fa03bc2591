# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmgap.feedback import adversarial_loss
from mmgap.generators import GradientPolicy, InpaintingGenerator
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel
from tests.support.tiny import save_tiny_pipeline, tiny_classifier

STEPS = 4


def objective(generator, target, condition, prompt):
    embeds = generator.prompts.encode([prompt]).expand(len(condition), -1, -1)
    images = generator(condition, embeds, [7, 8], STEPS)
    with target.frozen():
        logits = target(images, condition.labels).logits
    return adversarial_loss(logits, condition.labels, 'flip').mean()


def setup(folder, drawn, **gradient):
    generator = InpaintingGenerator(
        str(folder), dtype='float64', guidance_scale=3.0, eta=0.5, gradient=gradient
    )
    target = TargetModel(tiny_classifier(smooth=True), input_size=(32, 32))
    prompt = generator.prompts.random_prompt(2, 3, 'p')
    condition = SourceSet(drawn, generator.size).load([0, 1])
    return generator, target, condition, prompt


def gradient_of(folder, drawn, **gradient):
    generator, target, condition, prompt = setup(folder, drawn, **gradient)
    loss = objective(generator, target, condition, prompt)
    return torch.autograd.grad(loss, prompt.embeddings)[0]


def central_difference(evaluate, embeddings, direction, size):
    with torch.no_grad():
        start = embeddings.clone()
        values = []
        for sign in (1, -1):
            embeddings.copy_(start + sign * size * direction)
            values.append(float(evaluate()))
        embeddings.copy_(start)
    return (values[0] - values[1]) / (2 * size)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_full_gradient_equals_finite_differences(seed, tiny_sd, drawn):
    generator, target, condition, prompt = setup(tiny_sd, drawn)
    target.model.double()
    loss = objective(generator, target, condition, prompt)
    gradient = torch.autograd.grad(loss, prompt.embeddings)[0]
    torch.manual_seed(seed)
    direction = torch.randn_like(gradient) / gradient.numel() ** 0.5 + gradient / gradient.norm()
    expected = central_difference(
        lambda: objective(generator, target, condition, prompt),
        prompt.embeddings.data,
        direction,
        1e-3,
    )
    assert abs(float((gradient * direction).sum()) - expected) <= 1e-2 * abs(expected)


def test_last_k_equals_finite_differences_with_early_steps_held(tiny_sd, drawn, monkeypatch):
    generator, target, condition, prompt = setup(tiny_sd, drawn, mode='last_k', k=2)
    target.model.double()
    loss = objective(generator, target, condition, prompt)
    gradient = torch.autograd.grad(loss, prompt.embeddings)[0]
    unet = generator.pipeline.unet
    original, outputs, call = unet.forward, [], [0]

    def record(*args, **kwargs):
        outputs.append(original(*args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(unet, 'forward', record)
    with torch.no_grad():
        objective(generator, target, condition, prompt)
    assert len(outputs) == STEPS

    def held(*args, **kwargs):
        call[0] += 1
        early = (call[0] - 1) % STEPS < STEPS - 2
        return outputs[(call[0] - 1) % STEPS] if early else original(*args, **kwargs)

    monkeypatch.setattr(unet, 'forward', held)
    direction = gradient / gradient.norm()
    expected = central_difference(
        lambda: objective(generator, target, condition, prompt),
        prompt.embeddings.data,
        direction,
        1e-3,
    )
    assert abs(float(gradient.norm()) - expected) <= 1e-2 * abs(expected)


@pytest.mark.parametrize('mode', ['full', 'last_k', 'shortcut'])
@pytest.mark.parametrize('checkpoint', [True, 'blocks'])
def test_checkpointed_equals_plain(mode, checkpoint, tiny_sd, drawn):
    plain = gradient_of(tiny_sd, drawn, mode=mode)
    again = gradient_of(tiny_sd, drawn, mode=mode, checkpoint=checkpoint)
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)
    assert plain.abs().max() > 0


def test_weights_cast_once_are_those_that_autocast_casts(tiny_sd, drawn, monkeypatch, device):
    def drawn_and_gradient():
        generator = InpaintingGenerator(str(tiny_sd), guidance_scale=3.0, autocast='bfloat16')
        prompt = generator.prompts.random_prompt(2, 3, 'p')
        condition = SourceSet(drawn, generator.size).load([0, 1])
        embeds = generator.prompts.encode([prompt, prompt])
        images = generator(condition, embeds, [7, 8], STEPS)
        return generator, images, torch.autograd.grad(images.sum(), prompt.embeddings)[0]

    once, *found = drawn_and_gradient()
    assert once.pipeline.unet.dtype == once.pipeline.vae.dtype == torch.float32
    weights = [p.dtype for p in once.pipeline.unet.parameters() if p.ndim > 1]
    assert weights.count(torch.bfloat16) == len(weights) - 1
    monkeypatch.setattr('mmgap.generators.base.cast_once', lambda *_: None)
    each_time, *expected = drawn_and_gradient()
    assert {p.dtype for p in each_time.pipeline.unet.parameters()} == {torch.float32}
    # CUDA's flash attention sums its gradient in another order each time.
    apart = 0.02 if device.type == 'cuda' else 0
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= apart * b.abs().max() and a.abs().max() > 0


def test_modes_differ_where_they_should(tiny_sd, drawn):
    full = gradient_of(tiny_sd, drawn)
    torch.testing.assert_close(gradient_of(tiny_sd, drawn, mode='last_k', k=STEPS), full)
    truncated = gradient_of(tiny_sd, drawn, mode='last_k', k=1)
    last = gradient_of(tiny_sd, drawn, mode='shortcut', step=STEPS - 1)
    first = gradient_of(tiny_sd, drawn, mode='shortcut', step=0)
    torch.testing.assert_close(last, truncated)
    assert not torch.allclose(first, truncated)
    assert not torch.allclose(full, truncated)


def test_networks_are_as_before_after_a_call(tiny_sd, drawn):
    generator, target, condition, prompt = setup(tiny_sd, drawn, checkpoint=True)
    objective(generator, target, condition, prompt).backward()
    assert 'forward' not in generator.pipeline.unet.__dict__
    assert 'forward' not in generator.pipeline.vae.decoder.__dict__
    assert all(p.grad is None for p in generator.pipeline.unet.parameters())
    assert all(p.grad is None for p in target.model.parameters())


# Not ru_maxrss: a child begins with that of the process which starts it.
MEMORY = """
import torch
torch.set_num_threads(1)
def peak():
    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    return int(line.split()[1])
from tests.support.datasets import DrawnDataset
from pathlib import Path
from mmgap.generators import InpaintingGenerator
from mmgap.sources import SourceSet
generator = InpaintingGenerator({folder!r}, gradient=dict(checkpoint={checkpoint!r}))
condition = SourceSet(DrawnDataset(Path({drawn!r}), count=2), generator.size).load([0, 1])
prompt = generator.prompts.random_prompt(2, 3, 'p')
generator(condition, generator.prompts.encode([prompt] * 2).detach(), [1, 2], 1)
before = peak()
images = generator(condition, generator.prompts.encode([prompt] * 2), [1, 2], {steps})
torch.autograd.grad(images.sum(), prompt.embeddings)
print(before, peak())
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the memory in /proc')
@pytest.mark.slow  # 60 s: processes, whose memory is measured
def test_checkpointed_memory_hardly_grows_with_steps(tmp_path, on_cpu):
    """The process's memory, which is where activations are on the CPU."""
    folder = save_tiny_pipeline(tmp_path / 'wide', sample_size=64, blocks=(64, 64))

    def peak(steps: int, checkpoint: bool | str) -> int:
        code = MEMORY.format(
            folder=str(folder),
            drawn=str(tmp_path / 'drawn'),
            steps=steps,
            checkpoint=checkpoint,
        )
        # Every activation in a mapping of its own, so that what is freed leaves the process.
        root = str(Path(__file__).parents[2])
        environment = dict(os.environ, PYTHONPATH=root, MALLOC_MMAP_THRESHOLD_='65536')
        done = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return int(done.stdout.split()[-1])

    short, long = peak(2, True), peak(12, True)
    assert long <= 1.15 * short, f'{short} kB for 2 steps, {long} kB for 12'
    # The measure sees activations: without checkpoints they pile up.
    assert peak(6, False) > 1.5 * long
    assert peak(2, 'blocks') < short


def test_bad_settings():
    with pytest.raises(ValueError, match='sideways'):
        GradientPolicy(mode='sideways')
    with pytest.raises(ValueError, match='k must be'):
        GradientPolicy(mode='last_k', k=0)
    with pytest.raises(ValueError, match='layers'):
        GradientPolicy(checkpoint='layers')
    with pytest.raises(ValueError, match="gradient k=2 has no use with mode='full'"):
        GradientPolicy(k=2)
    with pytest.raises(ValueError, match="gradient step=1 has no use with mode='last_k'"):
        GradientPolicy('last_k', step=1)
