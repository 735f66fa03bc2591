# SPDX-License-Identifier: Apache-2.0
"""How a benchmark trains: its configs, which layers, in which precision, and what is measured."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner, TestLoop
from torch import nn

from mmgap.configs import name_of
from mmgap.injection import InjectionSettings
from mmgap.loop import group_report


@HOOKS.register_module()
class LastLayerOnly(Hook):
    """Train the last layer alone: the rest stays in eval mode without gradient.

    Args:
        prefix: What the names of its parameters begin with.
    """

    def __init__(self, prefix: str = 'head.') -> None:
        self.prefix = prefix

    def before_train(self, runner: Runner) -> None:
        """Freeze everything but the last layer.

        Raises:
            ValueError: If the model has none of that name.
        """
        count = 0
        for name, parameter in runner.model.named_parameters():
            parameter.requires_grad_(name.startswith(self.prefix))
            count += name.startswith(self.prefix)
        if not count:
            raise ValueError(f'benchmark.last_layer={self.prefix!r} names no parameter')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep normalisation statistics as they are."""
        for name, child in runner.model.named_children():
            if name != 'data_preprocessor':
                child.eval()
        runner.model.get_submodule(self.prefix.rstrip('.')).train()


@HOOKS.register_module()
class ChannelsLast(Hook):
    """Keep convolution weights as channels last: faster on CPUs and on tensor cores."""

    def before_train(self, runner: Runner) -> None:
        """Reorder the weights in memory."""
        runner.model.to(memory_format=torch.channels_last)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward in lower precision on any device; MMEngine's own AmpOptimWrapper refuses the CPU.

    Args:
        dtype: Name of the precision, ``'bfloat16'``: it needs no scaling of the loss.
    """

    def __init__(self, *args: Any, dtype: str = 'bfloat16', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=self.dtype):
            yield


def seeded_config(config: Config, seed: int) -> Config:
    """A copy without hooks, validation and checkpoints, on one seed."""
    config = copy.deepcopy(config)
    config.pop('benchmark')
    config.randomness = dict(seed=seed)
    config.custom_hooks = []
    config.resume = False  # it would go on from the base checkpoint's last iteration
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.default_hooks.checkpoint = None
    config.log_level = 'WARNING'
    return config


def base_config(config: Config, seed: int, length: int) -> Config:
    """The config of the base checkpoint of a seed.

    Args:
        config: The config of the benchmark.
        seed: The seed.
        length: Epochs of training, or iterations where the config counts those.
    """
    by_epoch = is_by_epoch(config.train_cfg)
    config = seeded_config(config, seed)
    unit = 'max_epochs' if by_epoch else 'max_iters'
    config.train_cfg = {'by_epoch': by_epoch, unit: length}
    return config


def is_by_epoch(train_cfg: Mapping[str, Any]) -> bool:
    """Whether a config's training counts epochs, as MMEngine's Runner reads it."""
    if 'type' in train_cfg:
        return 'IterBased' not in name_of(train_cfg['type'])
    return train_cfg.get('by_epoch', True)


def cell_config(
    config: Config, seed: int, *, changes: Mapping[str, Any], layers: str, base: Path
) -> Config:
    """The config that trains on from a base checkpoint, as ``benchmark`` says.

    Args:
        config: The config of the benchmark.
        seed: The seed.
        changes: What the method changes.
        layers: ``'last'`` or ``'all'``.
        base: The checkpoint.
    """
    settings = config.benchmark
    config = seeded_config(config, seed)
    for change in (settings.get('train', {}), changes):
        config.merge_from_dict(copy.deepcopy(dict(change)))
    config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    config.train_cfg = dict(by_epoch=False, max_iters=settings.steps)
    config.optim_wrapper = dict(optimizer=dict(settings.optimizers[layers]))
    if settings.get('autocast'):
        config.optim_wrapper.update(type='AutocastOptimWrapper', dtype=settings.autocast)
    # Without decay the last steps' noise decides the worst group.
    config.param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=settings.steps)
    config.load_from = str(base)
    config.custom_hooks = [dict(type='ChannelsLast')]
    if layers == 'last':
        config.custom_hooks.append(
            dict(type='LastLayerOnly', prefix=settings.get('last_layer', 'head.'))
        )
    return config


def inject(config: Config, pool: Path, *, images: int, settings: InjectionSettings) -> None:
    """Let the first images of a pool enter a config's training.

    The steps of a refit are taken from those of the training: all cells have as many.

    Raises:
        ValueError: If it has no steps to spare for a refit.
    """
    if settings.mode == 'refit':
        left = config.train_cfg.max_iters - settings.steps
        if left < 1:
            raise ValueError(
                f'a refit of {settings.steps} steps leaves nothing of the {left + settings.steps} '
                'of a cell; lower injection steps, or raise benchmark.steps'
            )
        config.train_cfg.max_iters = config.param_scheduler.T_max = left
    # A last layer on stored features is nothing to speed up.
    low = settings.layers == 'all' and config.optim_wrapper.get('dtype')
    if settings.optim_wrapper is None and low:
        wrapper = dict(settings.refit_optimizer, type='AutocastOptimWrapper')
        settings = replace(settings, optim_wrapper=dict(wrapper, dtype=config.optim_wrapper.dtype))
    config.custom_hooks.append(
        dict(
            type='mmgap.InjectionHook',
            pool=str(pool),
            budget=images,
            injection=dict(vars(settings)),
            report=False,
        )
    )


def train_and_test(
    config: Config,
    keep: Path | None = None,
    evaluate: Mapping[str, Any] | None = None,
    test: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and test.

    Args:
        config: What to train.
        keep: Where to keep the final weights.
        evaluate: By name, changes to the test data's settings for further evaluations.
        test: False leaves the test report empty.

    Returns:
        The test report, with what a probe says of generated images as ``probe``, and those of
        ``evaluate`` without their raw metrics.
    """
    with tempfile.TemporaryDirectory() as work_dir:
        config.work_dir = work_dir
        config.experiment_name = f'benchmark_{time.time_ns()}'
        runner = Runner.from_cfg(config)
        runner.train()
        report = measure(runner.test_loop.run()) if test else {}
        probed = runner.message_hub.runtime_info.get('gap_injection')
        if probed is not None:  # there were images
            report['probe'] = probed
        others = {}
        for name, changes in (evaluate or {}).items():
            loader = ConfigDict(copy.deepcopy(config.test_dataloader))
            loader.dataset.update(changes)
            others[name] = measure(TestLoop(runner, loader, config.test_evaluator).run())
            others[name].pop('metrics')
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            runner.save_checkpoint(work_dir, 'base.pth', save_optimizer=False)
            shutil.copy(Path(work_dir, 'base.pth'), keep.with_suffix('.tmp'))
            keep.with_suffix('.tmp').replace(keep)
    return report, others


def measure(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The group report; for depth also ``abs_rel`` and ``rmse`` (metres) of each group."""
    report = group_report(metrics)
    if report['measure'] == 'abs_rel':
        rmse = {group: report['metrics'][f'{group}/rmse'] for group in report['groups']}
        report.update(abs_rel=report['groups'], rmse=rmse)
    return report
