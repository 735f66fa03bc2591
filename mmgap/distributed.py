# SPDX-License-Identifier: Apache-2.0
"""How the processes of a distributed run share the drawing of images.

All of them go through a search and a synthesis in step and come to the same numbers: each draws its
part, then the numbers go round. What decides how it goes on is never computed by each for itself,
since two devices may round differently. With one process everything is its own part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import dist
from torch import Tensor, nn


def shard(count: int) -> slice:
    """Which of ``count`` things are this process's: neighbours, as many as the others' or one less.

    With fewer things than processes, some have none.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    return slice(count * rank // world, count * (rank + 1) // world)


def all_gather_list(part: Sequence[Any]) -> list[Any]:
    """What all processes have of a list, in its order, for all of them."""
    return [value for values in dist.all_gather_object(list(part)) for value in values]


def gather_list(part: Sequence[Any]) -> list[Any]:
    """The same on the main process alone, for what is large; the others get an empty list."""
    parts = dist.gather_object(list(part))
    return [value for values in parts or () for value in values]


def broadcast_object(value: Any) -> Any:
    """What the main process says; the others' own value is ignored."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def raise_on_all_ranks(*kinds: type[Exception]) -> Iterator[None]:
    """What any process raises in here, all raise.

    Otherwise the rest would wait for it for ever. The code inside must not talk to the others.

    Args:
        *kinds: Errors with one message as their argument; any other ends its process at once. The
            other processes raise the first of them that the error is an instance of.
    """
    error = None
    try:
        yield
    except kinds as caught:
        error = caught
    known = None
    if error is not None:
        known = next(i for i, kind in enumerate(kinds) if isinstance(error, kind)), str(error)
    first = next((found for found in dist.all_gather_object(known) if found is not None), None)
    if error is not None:
        raise error
    if first is not None:
        raise kinds[first[0]](first[1])


def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over processes of each tensor, where it was."""
    if dist.get_world_size() == 1:
        return list(tensors)
    device = tensors[0].device
    flat = torch.cat([tensor.flatten().to(device) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [
        part.view_as(tensor).to(tensor.device) for part, tensor in zip(parts, tensors, strict=True)
    ]


@contextmanager
def rank0_buffers(model: nn.Module) -> Iterator[None]:
    """While open, every process has the main one's buffers, as a checkpoint has.

    In distributed training each keeps its own statistics of batch normalisation, and would judge
    images differently.
    """
    if dist.get_world_size() == 1:
        yield
        return
    own = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for buffer, _ in own:
            dist.broadcast(buffer)
        yield
    finally:
        for buffer, kept in own:
            buffer.copy_(kept)
