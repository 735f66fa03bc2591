# SPDX-License-Identifier: Apache-2.0
"""Settings of how generated images enter training: ``injection``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MODES = ('mix', 'refit', 'staged', 'replace', 'auto')
LAYERS = ('last', 'all')
# Share of generated samples where ``ratio`` is None.
RATIOS = dict(mix=0.5, refit=0.5, staged=0.0, replace=1.0, auto=0.5)
# Settings that count in each mode.
REFIT = ('layers', 'last_layer', 'reset', 'real', 'steps', 'batch_size', 'optim_wrapper')
COUNTED = dict(
    all=('mode', 'ratio', 'weight', 'norm_eval'),
    refit=REFIT,
    auto=REFIT,
    staged=('share', 'reverse'),
)
# Of the network as a whole the rate is small: it shall be repaired, not trained anew.
OPTIMIZERS = dict(
    last=dict(type='Adam', lr=1e-2),
    all=dict(type='SGD', lr=2e-3, momentum=0.9),
)


@dataclass(frozen=True)
class InjectionSettings:
    """How generated images enter training.

    - ``mix``: each training sample is a generated one with probability ``ratio``.
    - ``refit``: as ``mix``; when training ends, and before the search of each further round, the
      last layer begins anew and is fitted to generated images, balanced over classes and prompts,
      with a little weight on real ones: see :class:`~mmgap.injection.Refit`. For models that tell
      generated images from real ones, and learn little for the latter from a mix. In between
      rounds training goes on from the weights before the refit.
    - ``staged``: images alone for ``share`` of the training that is left, then ``ratio``.
    - ``replace``: a real sample gives way, with probability ``ratio``, to an image that was drawn
      around it; one that has none stays.
    - ``auto``: ``mix`` or ``refit``, by how the model sees the images: see
      :func:`~mmgap.injection.judge_images`. ``mix`` for depth.

    Attributes:
        mode: One of these.
        ratio: Share of generated samples, in [0, 1]; or its course over the training that is left,
            as pairs of (progress, ratio), linear in between. None is ½ for ``mix`` and
            ``refit``, 1 for ``replace``, and 0, real samples alone, for the other part of
            ``staged``.
        weight: Factor of the loss of generated samples, in training and not in a refit.
        norm_eval: Keep statistics of batch normalisation as they are as long as there are generated
            samples in the batches: they would be those of no data that there is.
        share: Part of the training that ``staged`` trains on images alone.
        reverse: Let ``staged`` begin with ``ratio`` and end with images alone.
        layers: What a refit trains: ``'last'`` layer or ``'all'`` of the network.
        last_layer: What the names of the last layer's parameters begin with. None is ``'head.'``
            for classifiers and ``'decode_head.conv_seg.'`` for depth models.
        reset: Whether a refit's last layer begins anew. None is yes for classes, and no for depth,
            which has no shortcut in it to forget.
        real: Weight of the loss of real samples in a refit, that of images being 1. With 0 it sees
            images alone. None is 0.01 for classes, and 1 for depth.
        steps: Optimiser steps of a refit.
        batch_size: Images in each of them, on all processes together.
        optim_wrapper: Config of MMEngine's optimiser wrapper, for a refit. None is Adam with a rate
            of 0.01 for the last layer and SGD with 0.002 for all; the rate falls along a cosine.

    Raises:
        ValueError: If a setting is out of range.
    """

    mode: str = 'mix'
    ratio: float | Sequence[Sequence[float]] | None = None
    weight: float = 1.0
    norm_eval: bool = False
    share: float = 0.5
    reverse: bool = False
    layers: str = 'last'
    last_layer: str | None = None
    reset: bool | None = None
    real: float | None = None
    steps: int = 100
    batch_size: int = 64
    optim_wrapper: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, known in dict(mode=MODES, layers=LAYERS).items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f'injection {name} must be one of {known}, got {getattr(self, name)!r}'
                )
        for name in ('steps', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'injection {name} must be at least 1, got {getattr(self, name)}')
        if not self.weight > 0:
            raise ValueError(f'injection weight must be positive, got {self.weight}')
        if self.real is not None and not self.real >= 0:
            raise ValueError(f'injection real must not be negative, got {self.real}')
        if not 0 < self.share <= 1:
            raise ValueError(f'injection share must be in (0, 1], got {self.share}')
        points = self._points()
        if not points or any(len(point) != 2 for point in points):
            raise ValueError(
                f'injection ratio must be a number or pairs of (progress, ratio), got {self.ratio}'
            )
        places, ratios = zip(*points, strict=True)
        if sorted(places) != list(places) or not all(0 <= value <= 1 for value in places + ratios):
            raise ValueError(
                'injection ratio must be in [0, 1], its progress too and rising, got '
                f'{self.ratio!r}'
            )

    def _points(self) -> list[tuple[float, ...]]:
        ratio = RATIOS[self.mode] if self.ratio is None else self.ratio
        if isinstance(ratio, (int, float)):
            return [(0.0, float(ratio))]
        return [tuple(point) for point in ratio]

    def ratio_at(self, progress: float) -> float:
        """Share of generated samples.

        Args:
            progress: How much of the training that there was left when images came is done, in
                [0, 1].
        """
        if self.mode == 'staged':
            alone = progress >= 1 - self.share if self.reverse else progress < self.share
            if alone:
                return 1.0
        places, ratios = zip(*self._points(), strict=True)
        return float(np.interp(progress, places, ratios))

    @property
    def counted(self) -> dict[str, Any]:
        """The settings that mean something in this mode."""
        names = [*COUNTED['all'], *COUNTED.get(self.mode, ())]
        return {name: getattr(self, name) for name in names}

    def in_mode(self, mode: str) -> InjectionSettings:
        """The same settings in a mode that ``auto`` has chosen."""
        return replace(self, mode=mode)

    def for_labels(self, label_type: str) -> InjectionSettings:
        """The same settings with what depends on the type of the labels filled in.

        Args:
            label_type: ``'classes'`` or ``'depth'``.
        """
        reset, real = (True, 0.01) if label_type == 'classes' else (False, 1.0)
        return replace(
            self,
            reset=reset if self.reset is None else self.reset,
            real=real if self.real is None else self.real,
        )

    @property
    def refit_optimizer(self) -> dict[str, Any]:
        """Config of the optimiser wrapper of a refit."""
        if self.optim_wrapper is not None:
            return dict(self.optim_wrapper)
        return dict(type='OptimWrapper', optimizer=dict(OPTIMIZERS[self.layers]))
