# SPDX-License-Identifier: Apache-2.0
"""Processes of their own, for tests that are about processes: each imports everything anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess:
    """Run processes that talk through gloo, since NCCL refuses two of them on one GPU."""
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    return subprocess.run(
        [*launch, f'--nproc_per_node={processes}', *command],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def start(config: Path, *options: str) -> subprocess.Popen:
    """Start a training, in a group of its own so that its workers can be killed with it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='2'),
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for its end, and return what it said."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]
    return output


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """SIGKILL the run and its workers at a point that it must not outrun."""
    deadline = time.time() + 200
    while not reached():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.time() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
