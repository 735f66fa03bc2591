# SPDX-License-Identifier: Apache-2.0
"""What carries the label into the picture: a batch of sources at the generator's size."""

from __future__ import annotations

import os
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# What a source is read from.
FILES = ('img_path', 'mask_path', 'depth_map_path', 'depth_mask_path')


@dataclass
class Condition:
    """A batch of sources at the generator's size.

    Attributes:
        images: ``(B, 3, H, W)`` uint8 RGB.
        masks: ``(B, 1, H, W)`` bool, True on the foreground, whose pixels stay.
        labels: ``(B,)`` int64 classes, on the CPU.
        indices: Index of each source in its dataset.
        depth: ``(B, 1, H, W)`` float32 in metres, 0 where unknown; None where there is none. The
            masks are then where it is known.
        owner: Stands for the source set whose indices these are; None for what was made by hand,
            of which generators remember nothing.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor
    indices: list[int]
    depth: Tensor | None = None
    owner: Any = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def truth(self) -> Tensor:
        """What a model is to say of the images: their depth if there is one, else their labels."""
        return self.labels if self.depth is None else self.depth

    @property
    def names(self) -> list[Hashable] | None:
        """Key of each source in memory; None for a batch made by hand."""
        return None if self.owner is None else [(self.owner, index) for index in self.indices]

    def to(self, device: str | torch.device) -> Condition:
        """The same batch on another device; the labels stay where they are."""
        return replace(
            self,
            images=self.images.to(device),
            masks=self.masks.to(device),
            depth=None if self.depth is None else self.depth.to(device),
        )


@dataclass(frozen=True)
class ImageSpec:
    """One image to draw.

    Attributes:
        source: Index of the source.
        prompt_index: Index of the prompt, among those that are searched or drawn with.
        seed: Seed of the generator.
    """

    source: int
    prompt_index: int
    seed: int


def digest_of(info: Mapping[str, Any]) -> str | None:
    """Eight hex digits of what is in the files of a source; None where one is no local file.

    They tell that another image, mask or depth map lies in a file's place, wherever the data are.

    Args:
        info: Its data info.
    """
    digest = 0
    try:
        for path in _files(info):
            with open(path, 'rb') as file:
                digest = zlib.crc32(file.read(), digest)
    except OSError:  # in another storage; that it is missing is said by who reads it
        return None
    return f'{digest:08x}'


def bytes_of(info: Mapping[str, Any]) -> int | None:
    """Bytes of the files of a source together, for many of them; None as for :func:`digest_of`."""
    try:
        return sum(os.stat(path).st_size for path in _files(info))
    except OSError:
        return None


def _files(info: Mapping[str, Any]) -> list[str]:
    return [info[key] for key in FILES if info.get(key)]


class Sources(Protocol):
    """Labelled samples of a dataset as conditions of a generator.

    Attributes:
        dataset: Where they are from.
        size: ``(height, width)`` of the conditions in pixels.
        label_type: ``'classes'`` or ``'depth'``.
        classes: Class names; one, ``scene``, where labels are depth maps.
        labels: ``(N,)`` int, class of each source.
        groups: Group of each source; None where unknown.
    """

    dataset: Any
    size: tuple[int, int]
    label_type: str
    classes: tuple[str, ...]
    labels: np.ndarray
    groups: list[int | None]

    @property
    def unit(self) -> float | None:
        """Metres that a 1 in a depth file stands for; None where labels are classes."""

    def __len__(self) -> int: ...

    def of_class(self, label: int | None) -> np.ndarray:
        """Indices of the sources of one class, or of all when ``label`` is None."""

    def load(self, indices: Sequence[int]) -> Condition:
        """Read sources, or take them from memory."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read sources that will be loaded, while other work goes on."""

    def digest(self, index: int) -> str | None:
        """What is in the files of a source, see :func:`digest_of`."""

    def stored_depth(self, condition: Condition, i: int) -> np.ndarray | None:
        """``(H, W)`` uint16 depth map of a loaded source for a pool; None without depth."""
