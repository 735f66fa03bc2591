# SPDX-License-Identifier: Apache-2.0
"""``measure_cost`` measures the same work in all of its cases."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmgap.checks import cost
from mmgap.checks.random_sd15 import random_pipeline
from tests.support.commands import ROOT, Finished, process_state, run_command

CONFIG = str(ROOT / 'configs/ap_resnet18_toybirds.py')
SMALL = [
    f'custom_hooks.0.{stage}.{setting}=2'
    for stage in ('search', 'synthesis')
    for setting in ('batch_size', 'num_inference_steps')
]


def arguments(monkeypatch, out: Path, *options: str) -> argparse.Namespace:
    command = ['measure_cost.py', CONFIG, '--out', str(out), *options, '--cfg-options', *SMALL]
    monkeypatch.setattr(sys, 'argv', command)
    return cost.parse_args()


def test_plain_loop_has_the_gradient_of_a_search_step(monkeypatch, tmp_path):
    config = cost.load(arguments(monkeypatch, tmp_path))
    generator = config.custom_hooks[0].generator
    generator.update(cost.FORMATS['float32'], gradient=dict())
    loop = cost.Case(config, stock=True).loop_step(1)
    generator.gradient = dict(checkpoint='blocks')
    case = cost.Case(config)
    step, other = (case.search_step(number) for number in (1, 0))
    assert len(loop) == len(step) == 2
    for a, b, c in zip(loop, step, other, strict=True):
        size = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * size)
        assert not torch.allclose(b, c, rtol=0, atol=1e-2 * size)  # each step has its sources


def test_random_weights_have_the_sizes_of_stable_diffusion():
    with torch.device('meta'):
        pipeline = random_pipeline()
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]  # as its model card's files have them


@pytest.fixture
def no_processes(monkeypatch):
    """What a case's own process would do happens in this one."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        python, m, module, *rest = command
        assert (python, m, module) == (sys.executable, '-m', 'mmgap.checks.cost')
        with monkeypatch.context() as inside, process_state():
            inside.setattr(sys, 'argv', ['cost.py', *rest])
            inside.setattr(resource, 'setrlimit', lambda *_: None)  # it would last
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                cost.main()
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), '')

    monkeypatch.setattr(cost, 'subprocess', SimpleNamespace(run=run))


def measure(out: Path, *options: str) -> Finished:
    own = ('--formats', 'float32', '--repeats', '1', '--out', out)
    return run_command('measure_cost', CONFIG, *own, *options, '--cfg-options', *SMALL)


def test_going_on(no_processes, tmp_path):
    """Cases that are known are not measured again, and all are in the order of the list."""
    measure(tmp_path, '--cases', 'synthesis').check()
    known = json.loads((tmp_path / 'results.json').read_text())['rows']
    said = measure(tmp_path, '--cases', 'synthesis', 'host', 'floor', 'shortcut').check()
    rows = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert [row['case'] for row in rows] == ['shortcut', 'synthesis', 'floor', 'host']
    assert rows[1] == known[0] and rows[1]['images'] == 2 * cost.BATCHES
    assert all(row['seconds'] > 0 for row in rows)
    table = (tmp_path / 'results.md').read_text()
    assert table in said and '| shortcut | float32 | 2 |' in table
    done = measure(tmp_path, '--repeats', '2')
    assert done.code == 1 and 'other settings' in done.output


@pytest.mark.parametrize(
    'error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_used_up_memory_is_a_result(error, no_processes, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(cost, 'measure', fail)
    cases = ('synthesis', 'host', 'floor', 'shortcut')
    table = measure(tmp_path, '--cases', *cases).check()
    for case in cases:
        assert f'| {case} | float32 | out of memory |' in table


def test_other_errors_end_it(no_processes, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError('no kernel')

    monkeypatch.setattr(cost, 'measure', fail)
    done = measure(tmp_path, '--cases', 'host')
    assert done.code == 1 and 'RuntimeError: no kernel' in done.output
    for code, words in ((-9, '| host | float32 | out of memory |'), (1, 'host in float32 failed')):
        ended = subprocess.CompletedProcess([], code, '', 'why')
        run = partial(lambda ended, *_, **__: ended, ended)
        monkeypatch.setattr(cost, 'subprocess', SimpleNamespace(run=run))
        assert words in measure(tmp_path / str(code), '--cases', 'host').output


def test_without_a_compiler_other_cases_go_on(no_processes, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, 'compile', None)
    table = measure(tmp_path, '--cases', 'synthesis, compiled').check()
    assert '| synthesis, compiled | float32 | cannot compile here |' in table


def test_bad_input(tmp_path):
    depth = ROOT / 'configs/gap_resnet18_toydepth.py'
    done = run_command('measure_cost', depth, '--out', tmp_path)
    assert done.code == 1 and 'must have one GAPHook with an mmgap.InpaintingGen' in done.output
    done = run_command('measure_cost', CONFIG, '--out', tmp_path, '--repeats', '0')
    assert done.code == 2 and '--repeats must be at least 1, got 0' in done.output


# Starts a process for each of 17 cases, three of which compile.
@pytest.mark.slow
def test_all_cases(tmp_path):
    measure(tmp_path).check()
    rows = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert [row['case'] for row in rows] == list(cost.CASES)
    assert all(row['seconds'] > 0 for row in rows)
    assert all(row['peak'] > 2**20 for row in rows if 'peak' in row)
    assert (
        '| shortcut, blocks checkpointed | float32 | 2 |' in (tmp_path / 'results.md').read_text()
    )
