# SPDX-License-Identifier: Apache-2.0
"""The trainings that are killed: small, but with every stage that a run has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.support.commands import process_state
from tests.support.configs import depth_config
from tests.support.miniature import draw_waterbirds
from tests.support.small_config import small_config
from tests.support.tiny import save_tiny_controlnet, save_tiny_pipeline, tiny_depth_config

MODES = ('mix', 'refit', 'staged', 'replace', 'auto')


@dataclass(frozen=True)
class Cell:
    """A kind of training.

    Attributes:
        task: ``'classes'`` or ``'depth'``.
        loop: ``'epochs'`` or ``'iterations'``.
        processes: 1, or 2 that talk by gloo.
        critic: Whether a critic drops images.
    """

    task: str
    loop: str
    processes: int
    critic: bool

    @property
    def name(self) -> str:
        """A name for files and tables."""
        critic = 'critic' if self.critic else 'no critic'
        return f'{self.task}, {self.loop}, {self.processes} process(es), {critic}'


CELLS = [
    Cell(*values)
    for values in product(('classes', 'depth'), ('epochs', 'iterations'), (1, 2), (False, True))
]


@dataclass(frozen=True)
class Assets:
    """What all trainings need: a folder with tiny weights and data, see :func:`make_assets`."""

    folder: Path

    @property
    def sd(self) -> Path:
        """A Stable Diffusion of 16 pixels."""
        return self.folder / 'sd'

    @property
    def data(self) -> Path:
        """A miniature of Waterbirds."""
        return self.folder / 'birds'


def make_assets(folder: Path) -> Assets:
    """Make weights and data, and the critics: the models themselves with other weights."""
    assets = Assets(folder)
    if not (folder / 'complete').exists():
        save_tiny_pipeline(assets.sd)
        save_tiny_controlnet(folder / 'controlnet')
        draw_waterbirds(assets.data, per_group=4)
        for task in ('classes', 'depth'):
            config = _plain_config(task, assets, folder / 'work')
            config.custom_hooks = []
            config.dump(folder / f'{task}_critic.py')
            with process_state():
                torch.manual_seed(7)
                model = Runner.from_cfg(config).model
                if task == 'depth':  # as it is, it says 5 m of every pixel, and agrees on none
                    model.decode_head.conv_seg.weight.data *= 100
                    model.decode_head.conv_seg.bias.data -= 0.4
                torch.save(dict(state_dict=model.state_dict()), folder / f'{task}_critic.pth')
        (folder / 'complete').touch()
    return assets


def make_training(cell: Cell, mode: str, assets: Assets, work_dir: Path) -> tuple[Config, str]:
    """The config of a training, and the name of the checkpoint that it ends with."""
    config = _plain_config(cell.task, assets, work_dir)
    (hook,) = config.custom_hooks
    length, every, start = (3, 1, 1) if cell.loop == 'epochs' else (9, 2, 3)
    if cell.loop == 'epochs':
        config.train_cfg = dict(by_epoch=True, max_epochs=length)
        last = f'epoch_{length}.pth'
    else:
        config.train_cfg = dict(by_epoch=False, max_iters=length)
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        config.param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=length)
        last = f'iter_{length}.pth'
    config.default_hooks.checkpoint.update(
        type='CheckpointHook', interval=every, by_epoch=cell.loop == 'epochs'
    )
    injection = dict(mode=mode, steps=30, batch_size=6)
    hook.update(start=start, rounds=1, budget=8, injection=injection)
    if cell.critic:
        hook.critic = dict(
            type='mmgap.ModelCritic' if cell.task == 'classes' else 'mmgap.DepthCritic',
            config=str(assets.folder / f'{cell.task}_critic.py'),
            checkpoint=str(assets.folder / f'{cell.task}_critic.pth'),
            # Between the agreements that these weights give: some images are dropped.
            threshold=0.4756 if cell.task == 'classes' else 0.23,
        )
    else:
        hook.critic = False
    return config, last


def _plain_config(task: str, assets: Assets, work_dir: Path) -> Config:
    if task == 'classes':
        config = small_config(assets.data, assets.sd, work_dir)
        config.custom_hooks[0].search.update(steps=4)
        return config
    config = depth_config(
        'ap_unet_taskonomy-depth', assets.folder, assets.sd, assets.folder / 'controlnet'
    )
    for part in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        config.pop(part)
    preprocessor = dict(config.model.data_preprocessor, size=(32, 32))
    config.model = dict(tiny_depth_config(), data_preprocessor=preprocessor)
    for part in ('train_dataloader', 'test_dataloader'):
        for transform in config[part].dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (32, 32)
    config.work_dir = str(work_dir)
    (hook,) = config.custom_hooks
    hook.search.update(steps=4, checkpoint_interval=1, prompts_per_class=1, stop_loss=None)
    hook.synthesis.update(batch_size=2)
    return config
