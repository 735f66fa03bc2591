# SPDX-License-Identifier: Apache-2.0
"""Compiles the blocks that diffusion networks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

# diffusers' own list has transformer blocks alone, which are half of the work.
BLOCKS = ('ResnetBlock2D', 'Transformer2DModel', 'Downsample2D', 'Upsample2D', 'Attention')
# Each size of block, with and without gradient, is a graph of its own.
GRAPHS = 256


def compile_blocks(networks: Sequence[nn.Module], device: torch.device) -> bool:
    """Compile the blocks of networks in place; names and weights stay as they are.

    Blocks are small: compiling them takes a fraction of the time that a whole network takes, and
    checkpointing can be put around each. So compile first.

    Args:
        networks: Models of diffusers.
        device: Where they run.

    Returns:
        Whether they are compiled; False, with a warning, where nothing can be compiled for this
        device (no Triton, no C++ compiler).
    """
    try:
        torch.compile(_tried)(torch.ones(8, device=device))
    except Exception as error:  # of PyTorch, Triton or a compiler that is not there
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        MMLogger.get_current_instance().warning(
            f'[gap] generator compile=True: PyTorch cannot compile for {device.type} here '
            f'({reason}); the generator runs as it is'
        )
        return False
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, GRAPHS)
    limits.accumulated_cache_size_limit = max(limits.accumulated_cache_size_limit, 8 * GRAPHS)
    for network in networks:
        for block in outermost(network, BLOCKS):
            # What ``block.compile()`` sets, but for the batch.
            block._compiled_call_impl = _for_any_batch(block._call_impl)
    return True


def outermost(network: nn.Module, kinds: Sequence[str]) -> list[nn.Module]:
    """The modules of some classes, by name, that are not inside of another one of them."""
    found: list[nn.Module] = []
    for child in network.children():
        if type(child).__name__ in kinds:
            found.append(child)
        else:
            found += outermost(child, kinds)
    return found


def _for_any_batch(call: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a block's call for one size of images, and batches of whatever number."""
    # Else PyTorch would take height and width for variable too, as it meets them in several sizes.
    compiled = torch.compile(call, dynamic=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim > 1:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return compiled(*args, **kwargs)

    return run


def _tried(values: Tensor) -> Tensor:
    return (values * 2).cos()
