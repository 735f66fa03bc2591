# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint of MMPretrain or MMSegmentation on the config's test data."""

from __future__ import annotations

import argparse
import os
import os.path as osp

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

import mmgap.weights  # noqa: F401  so that `mmgap://…` is known
from mmgap.compat import allow_checkpoint_history, start_processes
from mmgap.configs import Changes, is_gap_hook, read_config, set_scope, work_dir_of
from mmgap.datasets import share_classes
from mmgap.targets.load import check_readable, fitting_share


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('checkpoint', help='checkpoint file, or its URL')
    parser.add_argument('--work-dir', help='where the log goes')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Changes, help='override settings: key=value …'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    """Build the Runner from the config and test."""
    args = parse_args()
    config = read_config(args.config, dict(launcher=args.launcher, **(args.cfg_options or {})))
    if '://' not in args.checkpoint and not osp.isfile(args.checkpoint):
        raise SystemExit(f'checkpoint {args.checkpoint!r} does not exist')
    config.work_dir = args.work_dir or work_dir_of(config)
    # The hook belongs to training; the rest of custom_hooks (EMA, say) acts in tests too.
    config.custom_hooks = [
        hook for hook in config.get('custom_hooks') or () if not is_gap_hook(hook)
    ]
    config.load_from = args.checkpoint
    set_scope(config)
    share_classes(config)
    allow_checkpoint_history()
    start_processes(config.launcher, config)
    check_readable(args.checkpoint)
    runner = Runner.from_cfg(config)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    share = fitting_share(model, dict(checkpoint=args.checkpoint))
    if share < 0.9:  # MMEngine would warn, and test what a random start makes of it
        raise SystemExit(
            f'only {share:.0%} of the weights of {type(model).__name__} are in '
            f'{args.checkpoint!r}: it is of another model. Give the config that it was trained with'
        )
    runner.test()
