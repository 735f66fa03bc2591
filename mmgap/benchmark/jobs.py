# SPDX-License-Identifier: Apache-2.0
"""The processes of a benchmark: each runs some of the seeds, and needs nothing of the others."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch

# Where launchers say which process this is, of how many, and which on its machine.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
)


def run_jobs(
    work: Callable[[argparse.Namespace, int, int], None], args: argparse.Namespace
) -> None:
    """Run a command's part of the work in this process, or all parts in ``--jobs`` of them.

    Args:
        work: A function of the arguments, the number of the process, and how many there are.
        args: With ``jobs``, ``seeds`` and ``launcher``.
    """
    jobs = min(args.jobs, len(args.seeds))
    if jobs < args.jobs:
        print(f'--jobs {args.jobs} is more than there are seeds; {jobs} will do', flush=True)
    if jobs == 1:
        with imports_uncollected():
            return work(args, *rank_and_world(args.launcher))
    # More threads than cores make small CPU jobs many times slower.
    threads = max(1, torch.get_num_threads() // jobs)
    os.environ['OMP_NUM_THREADS'] = str(threads)  # of the jobs, whose torch is yet to be imported
    # What a stopped job leaves is cleaned up; a warning of it would hide the error that stopped it.
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
    spawn = multiprocessing.get_context('spawn')  # CUDA does not work in forked processes
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, spawn, initializer=begin_job, initargs=(threads,)) as pool:
        try:
            for done in as_completed([pool.submit(work, args, rank, jobs) for rank in range(jobs)]):
                done.result()
        except BrokenProcessPool as error:
            raise SystemExit(
                'a job was killed, perhaps for want of memory: take fewer --jobs; finished cells '
                'are kept'
            ) from error
        except BaseException:  # Ctrl-C, too
            for job in set(multiprocessing.active_children()) - others:
                job.terminate()
            raise


def begin_job(threads: int) -> None:
    """Give a job its threads, and make it end with the process that started it."""
    gc.freeze()  # see imports_uncollected
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first ends the others
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Keep what is imported by now out of garbage collections.

    MMEngine collects garbage for each dataset that it builds, five of them in a cell, and to look
    through all objects of torch and diffusers takes half a second each time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rank_and_world(launcher: str) -> tuple[int, int]:
    """Number of this process, and how many there are.

    They form no process group: the cells of different seeds need nothing of each other, and each
    is the same as with one process.
    """
    if launcher == 'none':
        return 0, 1
    missing = [name for name in LAUNCHERS[launcher] if name not in os.environ]
    if missing:
        raise SystemExit(f'--launcher {launcher} needs {missing} in the environment')
    rank, world, local = (int(os.environ[name]) for name in LAUNCHERS[launcher])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    return rank, world


def wait_for(*paths: Path) -> None:
    """Wait until another process has written files; if it dies, the launcher ends this one."""
    while not all(path.exists() for path in paths):
        time.sleep(1)
