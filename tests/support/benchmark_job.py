# SPDX-License-Identifier: Apache-2.0
"""What tests/benchmark/test_jobs.py lets two jobs of the benchmark do."""

from __future__ import annotations

import argparse
import os
import time

import torch


def work(args: argparse.Namespace, rank: int, world: int) -> None:
    """Note how many processes and threads there are; the second job fails, the first goes on."""
    noted = f'{world} {torch.get_num_threads()} {os.environ["OMP_NUM_THREADS"]}'
    (args.out / str(rank)).write_text(noted)
    while rank and not (args.out / '0').exists():
        time.sleep(0.1)
    if rank:
        raise SystemExit('the second job has failed')
    time.sleep(300)
