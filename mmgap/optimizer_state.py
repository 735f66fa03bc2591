# SPDX-License-Identifier: Apache-2.0
"""An optimiser's state as tensors and plain data: what safetensors and JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

PREFIX = 'optimizer/'


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
