# SPDX-License-Identifier: Apache-2.0
"""What a training looks like from the inside."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner


class Recorder(Hook):
    """Notes the length of each epoch, each step's learning rate, and each epoch's images."""

    def __init__(self) -> None:
        self.lengths, self.rates, self.epochs = [], [], []

    def before_train_epoch(self, runner) -> None:
        self.lengths.append(len(runner.train_loop.dataloader))
        self.epochs.append([])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])
        self.epochs[-1] += [sample.img_path for sample in data_batch['data_samples']]


def train(config: Config) -> Recorder:
    """Train in this process, and return what was noted."""
    runner, recorder = Runner.from_cfg(config), Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder
