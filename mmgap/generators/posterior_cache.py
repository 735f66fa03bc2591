# SPDX-License-Identifier: Apache-2.0
"""What the VAE's encoder says of sources, which are the same at every step of a search."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor

LIMIT = 512 * 2**20  # bytes


class PosteriorCache:
    """Remembers by the name of a source what the VAE's encoder says of it, on the VAE's device.

    Pipelines encode their sources at every call, one after the other: all images, then all masked
    images. The posterior is remembered, not a draw from it: the draws stay those of the stock
    pipeline. They are made for all sources of a call at once and go to a GPU in one piece.

    Args:
        vae: Whose ``encode`` is replaced.
        used: How many of these two kinds the pipeline goes on to use. A UNet with 4 input channels
            is not shown the masked image: its posterior is then drawn from, since later draws
            depend on that, but never computed.
        size: Number of posteriors kept, the one not used for longest goes first; by default as many
            as 512 MiB hold.

    Raises:
        ValueError: If ``size`` is not positive.
    """

    def __init__(self, vae: Any, used: int = 2, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise ValueError(f'cache_size must be at least 1, or None, got {size}')
        self._encode = vae.encode
        self._used = used
        self._size = size
        self._known: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._names: Sequence[Hashable] = ()
        self._generators: Sequence[torch.Generator] = ()
        self._calls = 0
        self._noise = torch.empty(0)
        vae.encode = self.encode

    @contextmanager
    def of(
        self, names: Sequence[Hashable] | None, generators: Sequence[torch.Generator]
    ) -> Iterator[None]:
        """While open, the pipeline encodes these sources.

        Args:
            names: What each is known by; None remembers nothing.
            generators: The generator of each.
        """
        self._names, self._generators, self._calls = names or (), generators, 0
        try:
            yield
        finally:
            self._names, self._generators = (), ()
            self._noise = torch.empty(0)

    def tensors(self) -> list[Tensor]:
        """What is remembered."""
        return list(self._known.values())

    def to(self, device: torch.device) -> None:
        """Move what is remembered along with the VAE."""
        for name, parameters in self._known.items():
            self._known[name] = parameters.to(device)

    def encode(self, image: Tensor, return_dict: bool = True) -> Any:
        """What the VAE's own ``encode`` returns, or what it returned before."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        if not self._names or len(image) != 1:
            return self._encode(image, return_dict)
        kind, place = divmod(self._calls, len(self._names))
        self._calls += 1
        name = (self._names[place], min(kind, self._used - 1), image.dtype)
        if name in self._known:
            self._known.move_to_end(name)
        else:
            with torch.no_grad():
                self._remember(name, self._encode(image).latent_dist.parameters)
        posterior = DiagonalGaussianDistribution(self._known[name])
        if place == 0:
            shape, dtype = posterior.mean.shape, posterior.mean.dtype
            drawn = [torch.randn(shape, generator=g, dtype=dtype) for g in self._generators]
            self._noise = torch.cat(drawn).to(image.device)
        _draw_by(posterior, self._generators[place], self._noise[place : place + 1])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _remember(self, name: Hashable, parameters: Tensor) -> None:
        if self._size is None:
            each = parameters.numel() * parameters.element_size()
            self._size = max(1, LIMIT // each)
            MMLogger.get_current_instance().info(
                f"[gap] up to {self._size} of the VAE's posteriors stay on {parameters.device}, "
                f'{each / 2**10:.0f} KiB each'
            )
        self._known[name] = parameters
        if len(self._known) > self._size:
            self._known.popitem(last=False)


def _draw_by(posterior: Any, generator: torch.Generator, noise: Tensor) -> None:
    """Let a posterior's sample of one generator be made from noise that it has drawn."""
    stock = posterior.sample

    def sample(of: torch.Generator | None = None) -> Tensor:
        if of is not generator:
            return stock(of)
        return posterior.mean + posterior.std * noise

    posterior.sample = sample
