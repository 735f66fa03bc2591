# SPDX-License-Identifier: Apache-2.0
"""Which denoising steps keep their graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from mmgap.generators.patching import patched

MODES = ('full', 'last_k', 'shortcut')
CHECKPOINTS = (False, True, 'steps', 'blocks')


class GradientPolicy:
    """How the gradient goes back through the denoising chain.

    - ``full``: through every step.
    - ``last_k``: through the last ``k`` steps; the earlier ones are constants.
    - ``shortcut``: through the network of one step only, and from there along the latents' own
      linear path (Shortcut Diffusion Optimization, arXiv 2505.07477).

    Args:
        mode: One of the three above.
        k: Number of steps for ``last_k``.
        step: Index of the step for ``shortcut``; 0 is the first one drawn, which decides the
            layout.
        checkpoint: What to keep only the inputs of, and to compute again in the backward pass.
            ``'steps'``, or True: each denoising step but the last, which comes first there, and the
            VAE's decoder image by image; memory hardly grows with the number of steps, for about
            a third more time. ``'blocks'``: the same, and in it each block of the networks by
            diffusers' own gradient checkpointing; memory hardly grows with the number of images
            either, for about half more time.

    Raises:
        ValueError: If ``mode`` or ``checkpoint`` is unknown, ``k`` is not positive, ``step`` is
            negative, or one of them is given without the mode that it is for.
    """

    def __init__(
        self, mode: str = 'full', k: int = 1, step: int = 0, checkpoint: bool | str = False
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'gradient mode must be one of {MODES}, got {mode!r}')
        if k < 1:
            raise ValueError(f'gradient k must be at least 1, got {k}')
        if step < 0:
            raise ValueError(f'gradient step must not be negative, got {step}')
        for name, value, plain, needed in (('k', k, 1, 'last_k'), ('step', step, 0, 'shortcut')):
            if value != plain and mode != needed:
                raise ValueError(
                    f'gradient {name}={value} has no use with mode={mode!r}; set '
                    f'mode={needed!r}, or leave it out'
                )
        if checkpoint not in CHECKPOINTS:
            raise ValueError(
                f'gradient checkpoint must be one of {CHECKPOINTS}, got {checkpoint!r}'
            )
        self.mode = mode
        self.k = k
        self.step = step
        self.checkpoint = 'steps' if checkpoint is True else checkpoint

    def identity(self) -> list[Any]:
        """What decides a gradient, as plain data; checkpoints change time and memory alone."""
        return [self.mode, self.k, self.step]

    def prepare(self, networks: Sequence[Any]) -> None:
        """Set up models of diffusers, once and for all: without gradient it changes nothing.

        Args:
            networks: All that gradient goes through: the UNet, a ControlNet, the VAE.
        """
        for network in networks if self.checkpoint == 'blocks' else ():
            network.enable_gradient_checkpointing(_again)

    def keeps(self, call: int, num_calls: int) -> bool:
        """Whether call number ``call`` of ``num_calls`` keeps its graph."""
        if self.mode == 'last_k':
            return call >= num_calls - self.k
        if self.mode == 'shortcut':
            return call == min(self.step, num_calls - 1)
        return True

    @contextmanager
    def applied(
        self, denoisers: Sequence[nn.Module], decoder: nn.Module, num_calls: int, guided: bool
    ) -> Iterator[None]:
        """Patch the networks' ``forward`` for one run of a pipeline.

        Args:
            denoisers: Networks called once per step: the UNet, a ControlNet.
            decoder: The VAE's decoder; checkpointed along with the others.
            num_calls: Number of denoising steps.
            guided: Whether batches hold two halves, without and with the prompt, as classifier-free
                guidance has them.
        """
        with ExitStack() as stack:
            for network in denoisers:
                # Of the last step one network's graph is kept: it is the first to be needed, and
                # would be computed again at once.
                known = bool(self.checkpoint) and network is denoisers[0]
                stepped = self._stepped(network, num_calls, guided, known)
                stack.enter_context(patched(network, 'forward', stepped))
            if self.checkpoint:
                again = _one_by_one(_checkpointed(decoder.forward))
                stack.enter_context(patched(decoder, 'forward', again))
            yield

    def _stepped(
        self, network: nn.Module, num_calls: int, guided: bool, known: bool
    ) -> Callable[..., Any]:
        forward = network.forward
        last = max(call for call in range(num_calls) if self.keeps(call, num_calls))
        # Such a ControlNet is given the half with the prompt alone.
        guided = guided and not getattr(network.config, 'global_pool_conditions', False)
        calls = 0

        def stepped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            call, calls = calls, calls + 1
            if not self.keeps(call, num_calls):
                with torch.no_grad():
                    return forward(*args, **kwargs)
            checkpointed = self.checkpoint and not (known and call == last)
            plain = _checkpointed(forward) if checkpointed else forward
            if guided and not args[0].requires_grad:
                # The latents are constants yet: the half without the prompt needs no graph.
                negative, prompted = (_half((args, kwargs), len(args[0]), part) for part in (0, 1))
                with torch.no_grad():
                    without = forward(*negative[0], **negative[1])
                return _joined(without, plain(*prompted[0], **prompted[1]))
            return plain(*args, **kwargs)

        return stepped


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return run_checkpointed(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return partial(_again, forward)


def _one_by_one(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The VAE's decoder works at full size: with eight images it would take more than the UNet."""

    def each(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.cat([forward(one, *args, **kwargs) for one in sample.split(1)])

    return each


def _half(value: Any, batch: int, part: int) -> Any:
    """One half of all tensors of a batch, in whatever they come."""
    if isinstance(value, Tensor):
        return value.chunk(2)[part] if value.ndim and len(value) == batch else value
    if isinstance(value, (list, tuple)):
        return type(value)(_half(one, batch, part) for one in value)
    if isinstance(value, dict):
        return {name: _half(one, batch, part) for name, one in value.items()}
    return value


def _joined(first: Any, second: Any) -> Any:
    """Two halves as one batch."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    return type(first)(_joined(*pair) for pair in zip(first, second, strict=True))
