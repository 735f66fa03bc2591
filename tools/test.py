#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint of MMPretrain or MMSegmentation on the config's test data."""

from __future__ import annotations

import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmgap.compat import allow_checkpoint_history, start_processes
from mmgap.configs import is_gap_hook, set_scope
from mmgap.datasets import share_classes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where the log goes')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings: key=value …'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    """Build the Runner from the config and test."""
    args = parse_args()
    for name in (args.config, args.checkpoint):
        if not osp.isfile(name):
            raise SystemExit(f'{name!r} does not exist')
    config = Config.fromfile(args.config)
    config.launcher = args.launcher
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    config.work_dir = (
        args.work_dir
        or config.get('work_dir')
        or osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    )
    # The hook belongs to training; the rest of custom_hooks (EMA, say) acts in tests too.
    config.custom_hooks = [
        hook for hook in config.get('custom_hooks') or () if not is_gap_hook(hook)
    ]
    config.load_from = args.checkpoint
    set_scope(config)
    share_classes(config)
    allow_checkpoint_history()
    start_processes(config.launcher, config)
    Runner.from_cfg(config).test()


if __name__ == '__main__':
    main()
