# SPDX-License-Identifier: Apache-2.0
"""How the cells of a benchmark train: which layers, in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn


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
        found = 0
        for name, parameter in runner.model.named_parameters():
            parameter.requires_grad_(name.startswith(self.prefix))
            found += name.startswith(self.prefix)
        if not found:
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
