# SPDX-License-Identifier: Apache-2.0
"""Train a model of MMPretrain or MMSegmentation; the same command line as theirs."""

from __future__ import annotations

import argparse
import os
import os.path as osp

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint

import mmgap.weights  # noqa: F401  so that `mmgap://…` is known where no GAPHook brings it
from mmgap.compat import allow_checkpoint_history, name_pretrained, start_processes
from mmgap.configs import Changes, name_of, read_config, set_scope, toolbox_of, work_dir_of
from mmgap.datasets import share_classes
from mmgap.targets.load import check_readable, fitting_share


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('--work-dir', help='where logs, checkpoints and gap/ go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from a checkpoint; without one, from the latest in the work directory',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="multiply the learning rate by this run's batch size over the config's "
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Changes, help='override settings: key=value …'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def set_loader_defaults(config: Config) -> None:
    """What MMPretrain's own tool gives to data loaders that say nothing of it."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = config.get(name)
        if loader is not None:
            loader.setdefault('pin_memory', torch.cuda.is_available())
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))


def main() -> None:
    """Build the Runner from the config and train."""
    args = parse_args()
    config = read_config(args.config, dict(launcher=args.launcher, **(args.cfg_options or {})))
    config.work_dir = args.work_dir or work_dir_of(config)
    if args.amp:
        wrapper = name_of(config.optim_wrapper.get('type', 'OptimWrapper'))
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise SystemExit(f'--amp does not go with the optimiser wrapper {wrapper!r}')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise SystemExit(
                f'--auto-scale-lr: {args.config} does not say for which batch size its learning '
                'rate is; add auto_scale_lr=dict(base_batch_size=N), N over all processes'
            )
        config.auto_scale_lr.enable = True
    if args.resume is not None:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    set_scope(config)
    if toolbox_of(config) == 'mmpretrain':
        set_loader_defaults(config)
    name_pretrained(config.model)
    share_classes(config)
    allow_checkpoint_history()
    start_processes(config.launcher, config)
    check_start(config)
    runner = Runner.from_cfg(config)
    start = None if config.get('resume') else config.get('load_from')
    if start is not None and os.path.isfile(start):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not fitting_share(model, dict(checkpoint=start)):
            raise SystemExit(
                f'load_from={start!r} has no weight of {type(model).__name__}: it is of another '
                'model. Give one of this model, or load_from=None'
            )
    runner.train()


def check_start(config: Config) -> None:
    """See that the checkpoint that training starts from, or goes on from, is whole.

    Raises:
        ValueError: If it is not.
    """
    start = config.get('load_from')
    if start is None and config.get('resume') and osp.exists(config.work_dir):
        start = find_latest_checkpoint(config.work_dir)
    if start is not None:
        check_readable(start)
