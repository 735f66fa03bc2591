# SPDX-License-Identifier: Apache-2.0
"""Optimisers from a config, and their state as safetensors and JSON can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn
from torch.optim import Optimizer

PREFIX = 'optimizer/'


def build_optimizer(module: nn.Module, config: Mapping[str, Any], name: str) -> OptimWrapper:
    """Build an optimiser wrapper of MMEngine.

    Args:
        module: Whose parameters it changes.
        config: Its config, with ``optimizer``.
        name: Whose setting that is, for messages.

    Raises:
        ValueError: If it names no optimiser.
        KeyError: If there is none of this type.
    """
    kind = (config.get('optimizer') or {}).get('type')
    if kind is None:
        raise ValueError(
            f"{name} optim_wrapper must have optimizer=dict(type='Adam', lr=…), got {dict(config)}"
        )
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise KeyError(
            f'{name} optim_wrapper: there is no optimizer type={kind!r}; take one of torch.optim, '
            'or name the module of your own in custom_imports'
        )
    return build_optim_wrapper(module, dict(config))


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimiser.

    Returns:
        Tensors by ``optimizer/PARAMETER/NAME``, and ``param_groups`` and ``plain`` as JSON has
        them.
    """
    kept = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for i, values in kept['state'].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f'{PREFIX}{i}/{name}'] = value
            else:
                plain.setdefault(str(i), {})[name] = value
    return tensors, dict(param_groups=kept['param_groups'], plain=plain)


def load_optimizer_state(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Put the state of :func:`optimizer_state` back; other tensors and entries are ignored."""
    kept: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain['plain'].items()}
    for name, value in tensors.items():
        if name.startswith(PREFIX):
            i, entry = name.removeprefix(PREFIX).split('/', 1)
            kept.setdefault(int(i), {})[entry] = value
    optimizer.load_state_dict(dict(state=kept, param_groups=plain['param_groups']))
