# SPDX-License-Identifier: Apache-2.0
"""What drawing costs, counted without a clock: evaluations of the generator's networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine import dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

# Calls of networks on one sample each, by network and way: those that gradient goes back through
# are counted as forward and as backward.
Counts = dict[str, int]
BACKWARD = 2  # evaluations that a backward pass is worth, as usual
DECODER = 'decoder'


class Evaluations:
    """Counts evaluations: one is a call of the UNet on the latents of one image.

    Classifier-free guidance calls it on two. A call that gradient goes back through counts three
    times, whatever is computed again to save memory; the half without the prompt of a first step
    needs no gradient. A ControlNet and the VAE's decoder count by their floating-point operations
    over the UNet's. Not counted: text encoders, and encoding a source, which is done once for each.

    Args:
        denoisers: Models of diffusers that are called once per step, the UNet first.
        vae: The VAE.
        guided: Whether batches hold two halves, without and with the prompt.

    Attributes:
        guided: The same; to be set where calls for a while hold none.
    """

    def __init__(self, denoisers: Sequence[Any], vae: Any, guided: bool) -> None:
        self._counts: Counts = {}
        self._examples: dict[str, tuple[int, Any, Any]] = {}
        self._shares: dict[str, float] = {}
        self.guided = guided
        # Not the models: they would hold each other alive.
        models = {type(network).__name__: network for network in denoisers}
        self._unet = next(iter(models))
        self._kinds = {name: (type(one), dict(one.config)) for name, one in models.items()}
        self._kinds[DECODER] = (type(vae), dict(vae.config))
        for name, network in {**models, DECODER: vae.decoder}.items():
            network.register_forward_hook(partial(self._count, name), with_kwargs=True)

    def counts(self) -> Counts:
        """All calls so far; whole numbers, so that sums do not depend on their order."""
        return dict(self._counts)

    def since(self, before: Counts) -> Counts:
        """Calls since an earlier :meth:`counts`."""
        more = {name: count - before.get(name, 0) for name, count in self._counts.items()}
        return {name: count for name, count in more.items() if count}

    def total_of_all(self, counts: Counts) -> float:
        """The same in all processes, of counts of all: one that has drawn nothing can not tell."""
        drawn = all(name.partition(' ')[0] in self._examples for name in counts)
        totals = dist.all_gather_object(self.total(counts) if drawn else None)
        return next((total for total in totals if total is not None), 0.0)

    def total(self, counts: Counts) -> float:
        """The evaluations that calls are worth, of networks that have drawn since it was made."""
        total = 0.0
        for name, count in sorted(counts.items()):
            network, _, way = name.partition(' ')
            total += count * self.share(network) * (BACKWARD if way == 'backward' else 1)
        return round(total, 6)

    def share(self, name: str) -> float:
        """Operations of a network's call on one sample over those of the UNet's."""
        if name not in self._shares:
            own, unet = (self._operations(each) for each in (name, self._unet))
            self._shares[name] = own / unet
        return self._shares[name]

    def _count(self, name: str, network: Any, args: Any, kwargs: Any, output: Any) -> None:
        first = args[0] if args else kwargs['sample']
        size = len(first)
        if name not in self._examples:
            self._examples[name] = (size, *_on_meta((args, kwargs)))
        self._add(name, 'forward', size)
        if torch.is_grad_enabled() and _has_gradient(output):
            # As in GradientPolicy: the latents are constants yet.
            halved = self.guided and name != DECODER and not first.requires_grad
            # Such a ControlNet is given the half with the prompt alone.
            halved = halved and not network.config.get('global_pool_conditions')
            self._add(name, 'backward', size // 2 if halved else size)

    def _add(self, name: str, way: str, size: int) -> None:
        key = f'{name} {way}'
        self._counts[key] = self._counts.get(key, 0) + size

    def _operations(self, name: str) -> float:
        size, args, kwargs = self._examples[name]
        kind, config = self._kinds[name]
        with torch.device('meta'):  # shapes alone: nothing is computed
            model = kind.from_config(config)
        network = model.decoder if name == DECODER else model
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(*args, **kwargs)
        return counter.get_total_flops() / size


def of_all(counts: Counts) -> Counts:
    """The sum over all processes, for all of them."""
    return dict(sum((Counter(own) for own in dist.all_gather_object(counts)), Counter()))


def _on_meta(value: Any) -> Any:
    """The same shapes without content."""
    if isinstance(value, Tensor):
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=dtype, device='meta')
    if isinstance(value, (list, tuple)):
        return type(value)(_on_meta(part) for part in value)
    if isinstance(value, dict):
        return {name: _on_meta(part) for name, part in value.items()}
    return value


def _has_gradient(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(_has_gradient(part) for part in value)
