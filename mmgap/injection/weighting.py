# SPDX-License-Identifier: Apache-2.0
"""Weights of samples in the loss of a model of the toolboxes, which know none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HEADS = ('head', 'decode_head', 'auxiliary_head')


class SampleWeights:
    """Lets a head's loss modules multiply each sample's loss.

    The losses of MMPretrain and MMSegmentation take a ``weight`` that their heads do not pass on.
    Each gets it here: the mean over a batch becomes ``sum(weight * loss) / len(batch)``.

    Args:
        model: A classifier or depth model, without its wrapper for several processes.

    Raises:
        ValueError: If its head has no loss that takes weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights: Tensor | None = None
        heads = [getattr(model, name) for name in HEADS if getattr(model, name, None) is not None]
        losses = [loss for head in heads for loss in _losses_in(head)]
        taking = [loss for loss in losses if 'weight' in inspect.signature(loss.forward).parameters]
        if not taking:
            names = sorted({type(loss).__name__ for loss in losses})
            raise ValueError(
                f'the losses of {type(model).__name__} ({names or "none found"}) take no weights '
                'of samples; leave injection weight at 1, and refit with real=0'
            )
        self._losses = taking

    @contextmanager
    def weighting(self, weights: Sequence[float] | Tensor) -> Iterator[None]:
        """While open, the next batch's losses have these weights, one for each sample."""
        given = torch.as_tensor(weights, dtype=torch.float32)

        def add(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if len(args) and len(args[0]) != len(given):
                raise ValueError(f'{len(given)} weights are given for {len(args[0])} samples')
            return args, dict(named, weight=given.to(args[0].device))

        handles = [loss.register_forward_pre_hook(add, with_kwargs=True) for loss in self._losses]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _losses_in(module: nn.Module) -> Iterator[nn.Module]:
    """The losses in a head; those that a loss is made of get their weights from it."""
    if 'loss' in type(module).__name__.lower():
        yield module
        return
    for child in module.children():
        yield from _losses_in(child)
