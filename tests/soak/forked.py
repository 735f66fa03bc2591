# SPDX-License-Identifier: Apache-2.0
"""Trainings in forks of this process, which can be killed from outside."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from tests.soak.board import StageBoard, watch

PATIENCE = 900  # seconds until a training counts as hanging, also beside other work


class Training:
    """A training in forks of this process, one for each rank.

    Args:
        config: Its config file.
        processes: How many.
        folder: For boards and logs.
        resume: Whether it goes on.
    """

    def __init__(self, config: Path, processes: int, folder: Path, resume: bool) -> None:
        self.boards = [
            StageBoard(folder / f'board_{rank}', fresh=True) for rank in range(processes)
        ]
        self.logs = [folder / f'log_{rank}.txt' for rank in range(processes)]
        options = ('--resume',) * resume
        if processes > 1:
            options += ('--launcher', 'pytorch')
        place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(_free_port()))
        self.began = time.monotonic()
        self.processes = []
        for rank in range(processes):
            ranks = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            environment = {**place, **ranks} if processes > 1 else {}
            arguments = (self.boards[rank], self.logs[rank], environment, config, options)
            self.processes.append(get_context('fork').Process(target=_train, args=arguments))
            self.processes[-1].start()

    @property
    def board(self) -> StageBoard:
        """The board of the main process."""
        return self.boards[0]

    @property
    def over(self) -> bool:
        """Whether the main process has ended."""
        return self.processes[0].exitcode is not None

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: If it ended with an error, or hangs.
        """
        for process, log in zip(self.processes, self.logs, strict=True):
            process.join(PATIENCE)
            if process.exitcode != 0:
                said = log.read_text()[-3000:] if log.exists() else 'nothing was said'
                self.kill(random.Random(0))
                raise RuntimeError(f'ended with {process.exitcode}: {said}')

    def wake(self) -> None:
        """Let the main process go on, which has stopped itself."""
        pid = self.processes[0].pid
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        os.kill(pid, signal.SIGCONT)

    def kill(self, rng: random.Random) -> int:
        """SIGKILL to all processes, one a little before the others; the rank of that one."""
        ranks = list(range(len(self.processes)))
        rng.shuffle(ranks)
        for rank in ranks:
            process = self.processes[rank]
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
            if rank != ranks[-1]:
                time.sleep(rng.uniform(0, 0.05))
        for process in self.processes:
            process.join()
        return ranks[0]

    def new_work(self) -> float | None:
        """Seconds until new work began; None if none has."""
        at = self.board.new_work_at
        return None if at is None else at - self.began


def _train(
    board: StageBoard, log: Path, environment: dict[str, str], config: Path, options: tuple
) -> None:
    import torch
    from mmengine.config import config as configs

    from tests.support.commands import run_command

    # Every checkpoint has the config as text, whose layout takes yapf a second each time.
    configs.FormatCode = lambda text, **_: (text, True)
    torch.set_num_threads(1)
    os.environ.update(environment, CUDA_VISIBLE_DEVICES='')
    watch(board)
    done = run_command('train', config, *options)
    log.write_text(done.output)
    sys.stdout.flush()
    os._exit(min(done.code, 1))  # what the parent would do at its own end is not this one's


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]
