# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show; ``tools/gpu_checks.sh OUT`` runs all of it and keeps the numbers.

Equality with the stock pipelines and gradients against finite differences are in the tests of
generators, which run on the GPU where there is one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from mmgap.checks.random_sd15 import random_pipeline
from mmgap.generators import InpaintingGenerator
from mmgap.pool import SamplePool
from mmgap.sources import SourceSet
from tests.support.miniature import draw_waterbirds
from tests.support.small_config import small_config

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
MAIN = ROOT / 'configs' / 'ap_resnet18_toybirds.py'


@pytest.fixture
def keep(request):
    """Write numbers down as they come: a run may be cut off."""

    def write(**numbers) -> None:
        line = json.dumps(dict(test=request.node.name, **numbers))
        print(line)
        if os.environ.get('MMGAP_GPU_RESULTS'):
            with open(os.environ['MMGAP_GPU_RESULTS'], 'a') as file:
                file.write(line + '\n')

    return write


def start(tool: str, *arguments: str) -> subprocess.Popen:
    log = tempfile.TemporaryFile('w+')  # a pipe that nobody reads would fill up
    path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path)),
    )
    process.log = log
    return process


def finish(process: subprocess.Popen) -> str:
    process.wait(timeout=500)
    process.log.seek(0)
    output = process.log.read()
    assert process.returncode == 0, output[-4000:]
    return output


def summary_of(work_dir: Path) -> dict:
    return json.loads((work_dir / 'gap' / 'summary.json').read_text())


def test_main_job(tmp_path, keep):
    began = time.time()
    finish(start('train.py', MAIN, '--work-dir', tmp_path))
    summary = summary_of(tmp_path)
    keep(
        wall=time.time() - began,
        seconds=summary['seconds'],
        before=summary['before']['worst_group'],
        after=summary['after']['worst_group'],
    )
    assert summary['images'] == 400
    assert summary['after']['worst_group'] > summary['before']['worst_group'] + 0.1


def test_killed_and_resumed(tmp_path, keep):
    """On a GPU sums come in another order each time, so the images are compared, not bits."""
    for name in ('whole', 'cut'):
        finish_or_kill = start('train.py', MAIN, '--work-dir', tmp_path / name)
        if name == 'whole':
            finish(finish_or_kill)
            continue
        manifest = tmp_path / name / 'gap' / 'pool' / 'manifest.jsonl'
        deadline = time.time() + 300
        while not manifest.exists() and time.time() < deadline:
            assert finish_or_kill.poll() is None
            time.sleep(0.01)
        finish_or_kill.kill()
        finish_or_kill.wait()
        assert not (tmp_path / name / 'epoch_9.pth').exists()
    output = finish(start('train.py', MAIN, '--work-dir', tmp_path / 'cut', '--resume'))
    assert 'search goes on' in output
    pools = [SamplePool(tmp_path / name / 'gap' / 'pool') for name in ('whole', 'cut')]
    samples = [pool.samples for pool in pools]
    assert [(s.source_index, s.seed, s.label) for s in samples[0]] == [
        (s.source_index, s.seed, s.label) for s in samples[1]
    ]
    pairs = [
        [np.array(Image.open(pool.path(pool.samples[i]))).astype(int) for pool in pools]
        for i in range(0, 400, 40)
    ]
    shares = [float((np.abs(a - b) <= 1).mean()) for a, b in pairs]
    keep(pixels_within_one=min(shares), after=summary_of(tmp_path / 'cut')['after']['worst_group'])


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_training_in_half_precision_beside_the_hook(dtype, tiny_sd, tmp_path, keep):
    """GradScaler in training, autocast in the generator: neither disturbs the other."""
    data = draw_waterbirds(tmp_path / 'data', per_group=4)
    config = small_config(data, tiny_sd, tmp_path / 'work')
    config.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype)
    if dtype == 'float16':
        config.optim_wrapper.update(loss_scale='dynamic')
    config.custom_hooks[0].generator.update(autocast='bfloat16')
    runner = Runner.from_cfg(config)
    runner.train()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    summary = summary_of(tmp_path / 'work')
    assert summary['images'] == 8
    keep(after=summary['after']['mean'])


@pytest.mark.parametrize('autocast', ['bfloat16', 'float16'])
def test_gradient_under_autocast_points_where_float32_does(autocast, tiny_sd, drawn, keep):
    gradients, images = [], []
    for precision in (None, autocast):
        generator = InpaintingGenerator(str(tiny_sd), guidance_scale=3.0, autocast=precision)
        condition = SourceSet(drawn, generator.size).load([0, 1])
        prompt = generator.prompts.random_prompt(3, 0, 'p')
        embeds = generator.prompts.encode([prompt]).expand(2, -1, -1)
        drawn_images = generator(condition, embeds, [1, 2], 5)
        loss = drawn_images.float().square().mean()
        gradients.append(torch.autograd.grad(loss, prompt.embeddings)[0].flatten())
        images.append(drawn_images.detach().float())
    cosine = float(torch.cosine_similarity(*gradients, dim=0))
    off = float((images[0] - images[1]).abs().mean())
    keep(cosine=cosine, mean_difference=off)
    assert cosine > 0.9 and off < 0.05


@pytest.fixture(scope='module')
def sd15(tmp_path_factory) -> Path:
    """Stable Diffusion 1.5 in its sizes, with random weights."""
    folder = os.environ.get('MMGAP_RANDOM_SD15')
    folder = Path(folder) if folder else tmp_path_factory.mktemp('sd15') / 'sd15'
    if not (folder / 'model_index.json').exists():
        random_pipeline().to(torch.float16).save_pretrained(folder)
    return folder


def test_memory_hardly_grows_with_the_steps(sd15, drawn, keep):
    generator = InpaintingGenerator(
        str(sd15), size=384, dtype='bfloat16', gradient=dict(checkpoint='steps')
    )
    condition = SourceSet(drawn, generator.size).load([0, 1, 2, 3])
    prompt = generator.prompts.random_prompt(3, 0, 'p')
    peaks = {}
    for steps in (2, 2, 12):  # the first one warms up
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        embeds = generator.prompts.encode([prompt]).expand(4, -1, -1)
        images = generator(condition, embeds, [1, 2, 3, 4], steps)
        torch.autograd.grad(images.float().mean(), prompt.embeddings)
        peaks[steps] = torch.cuda.max_memory_allocated() / 2**30
    keep(peaks_gib=peaks)
    assert peaks[12] <= 1.15 * peaks[2]


def test_the_generator_waits_on_the_cpu_and_comes_back(sd15, drawn, keep):
    generator = InpaintingGenerator(str(sd15), size=256, dtype='bfloat16')
    condition = SourceSet(drawn, generator.size).load([0])
    embeds = generator.prompts.encode([generator.prompts.random_prompt(3, 0, 'p')]).detach()
    with torch.no_grad():
        before = generator(condition, embeds, [1], 2)
        taken = torch.cuda.memory_allocated()
        generator.to('cpu')
        torch.cuda.empty_cache()
        left = torch.cuda.memory_allocated()
        generator.to(generator.home)
        after = generator(condition, embeds, [1], 2)
    keep(gib=generator.memory() / 2**30, freed_gib=(taken - left) / 2**30)
    assert taken - left > 0.95 * generator.memory()
    assert torch.equal(before, after)


def test_compiled_images_and_gradients_are_the_eager_ones(sd15, drawn, keep):
    images, gradients = [], []
    for compiled in (False, True):
        generator = InpaintingGenerator(
            str(sd15), size=256, gradient=dict(checkpoint='steps'), compile=compiled
        )
        assert generator.compiled is compiled
        condition = SourceSet(drawn, generator.size).load([0, 1])
        prompt = generator.prompts.random_prompt(3, 0, 'p')
        embeds = generator.prompts.encode([prompt]).expand(2, -1, -1)
        drawn_images = generator(condition, embeds, [1, 2], 3)
        loss = drawn_images.square().mean()
        gradients.append(torch.autograd.grad(loss, prompt.embeddings)[0].flatten())
        images.append(drawn_images.detach())
        names = generator.pipeline.unet.state_dict()
        assert not any('_orig_mod' in name for name in names)
    share = float(((images[0] - images[1]).abs() <= 1 / 255).float().mean())
    cosine = float(torch.cosine_similarity(*gradients, dim=0))
    keep(pixels_within_one=share, cosine=cosine)
    assert share >= 0.999 and cosine > 0.999


def test_check_says_what_a_run_then_takes(tmp_path, keep):
    """Of a search that no prompt leaves early; judging its prompts comes on top."""
    options = [
        'custom_hooks.0.search.stop_loss=None',
        'custom_hooks.0.search.max_restarts=0',
        'custom_hooks.0.search.steps=60',
        'custom_hooks.0.start=1',
        'train_cfg.max_epochs=2',
    ]
    said = finish(start('check.py', MAIN, '--cfg-options', *options))
    search = re.search(r'takes at most ([\d.]+) (min|h) to search', said)
    draw = re.search(r'\d+ images take ([\d.]+) (min|h)', said)
    predicted = [float(m[1]) * (60 if m[2] == 'min' else 3600) for m in (search, draw)]
    finish(start('train.py', MAIN, '--work-dir', tmp_path, '--cfg-options', *options))
    seconds = summary_of(tmp_path)['seconds']
    taken = [seconds['search'], seconds['synthesis']]
    keep(predicted=predicted, taken=taken, said=said.splitlines()[-6:])
    for expected, found in zip(predicted, taken, strict=True):
        assert abs(expected - found) <= 0.25 * found
