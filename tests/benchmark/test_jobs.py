# SPDX-License-Identifier: Apache-2.0
"""Processes that share the seeds of a benchmark."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from mmgap.benchmark.jobs import rank_and_world, run_jobs
from tests.support.benchmark_job import work
from tests.support.benchmarks import BIRDS, CONFIG, ROOT
from tests.support.processes import torchrun


def test_a_failing_job_stops_the_others(tmp_path, monkeypatch, capsys):
    for name in ('OMP_NUM_THREADS', 'PYTHONWARNINGS'):
        monkeypatch.setenv(name, '')  # put back afterwards
    args = argparse.Namespace(jobs=3, seeds=[0, 1], launcher='none', out=tmp_path)
    began, others = time.time(), set(multiprocessing.active_children())
    with pytest.raises(SystemExit, match='the second job has failed'):
        run_jobs(work, args)
    assert time.time() - began < 200
    assert not set(multiprocessing.active_children()) - others
    assert '--jobs 3 is more than there are seeds; 2 will do' in capsys.readouterr().out
    share = max(1, torch.get_num_threads() // 2)
    assert (tmp_path / '0').read_text() == (tmp_path / '1').read_text() == f'2 {share} {share}'


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_launchers_tell_each_process_its_number(launcher, monkeypatch, on_cpu):
    names = dict(pytorch='RANK WORLD_SIZE LOCAL_RANK')
    names['slurm'] = 'SLURM_PROCID SLURM_NTASKS SLURM_LOCALID'
    for name, value in zip(names[launcher].split(), '231', strict=True):
        monkeypatch.setenv(name, value)
    assert rank_and_world(launcher) == (2, 3)


@pytest.mark.slow  # minutes: three benchmarks, in five processes that import everything
def test_processes_share_the_seeds(tmp_path):
    """The same cells from two processes as from one, seconds apart."""
    options = ['--methods', 'none', 'agnostic', '--budgets', '4', '--seeds', '0', '1', '2']
    options += ['--layers', 'last', '--cfg-options', *BIRDS]
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ['tools/benchmark.py', str(CONFIG), '--out', str(out), '--launcher', 'pytorch']
        done = torchrun(*command, *options, processes=processes)
        assert done.returncode == 0, done.stdout[-3000:]
    out = tmp_path / 'jobs'
    command = [sys.executable, 'tools/benchmark.py', str(CONFIG), '--out', str(out), '--jobs', '2']
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='2')
    settings = dict(cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    done = subprocess.run([*command, *options], **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [
        json.loads((tmp_path / name / 'results.json').read_text()) for name in ('1', '2', 'jobs')
    ]
    for cell in sum(cells, []):
        del cell['seconds']
    assert len(cells[0]) == 6
    assert cells[0] == cells[1] == cells[2]
    # A checkpoint that cannot be read ends the second job, and all; what is finished stays.
    (out / 'base' / 'seed_1.pth').write_bytes(b'no checkpoint')
    (out / 'cells' / 'none-0-1-last.json').unlink()
    done = subprocess.run([*command, *options], **settings)
    assert done.returncode != 0 and 'UnpicklingError: Weights only load failed' in done.stderr
    assert len(json.loads((out / 'results.json').read_text())) == 5
