# SPDX-License-Identifier: Apache-2.0
"""Processes of their own, for tests that are about processes: all but forks import all anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.support.commands import run_command

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


class Forked:
    """A command in a fork of this process, in a group of its own; with what Popen has of it."""

    def __init__(self, log: Path, name: str, *arguments: object) -> None:
        self.log = log
        self.process = get_context('fork').Process(target=self._run, args=(name, *arguments))
        self.process.start()
        self.pid = self.process.pid

    def _run(self, name: str, *arguments: object) -> None:
        os.setsid()
        torch.set_num_threads(1)  # the others have stayed in the parent
        done = run_command(name, *arguments)
        self.log.write_text(done.output)
        sys.exit(done.code)

    def poll(self) -> int | None:
        """Its exit status once it has ended."""
        return self.process.exitcode

    def communicate(self) -> tuple[str, None]:
        """Wait for its end; what it said is known if it was not killed."""
        self.process.join()
        return self.log.read_text() if self.log.exists() else '', None


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


def kill_when(process: subprocess.Popen | Forked, reached: Callable[[], bool]) -> None:
    """SIGKILL the run and its workers at a point that it must not outrun."""
    deadline = time.time() + 200
    while not reached():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.time() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
