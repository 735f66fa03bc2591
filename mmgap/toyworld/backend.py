# SPDX-License-Identifier: Apache-2.0
"""File backends of MMEngine that draw instead of reading.

``toybirds://SPLIT/000123.png`` is the picture of record 123 and ``toybirds://SPLIT/000123_mask.png``
its mask; ``toydepth://SPLIT/000123.png`` and ``toydepth://SPLIT/000123_depth.png`` are picture and
depth. All as PNG bytes. Importing this module registers the backends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import cv2
import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

from mmgap.toyworld.depth_splits import DEPTH_SIZES, draw_depth_record
from mmgap.toyworld.renderer import render
from mmgap.toyworld.splits import SIZES, record


@lru_cache(maxsize=8192)
def _draw_birds(split: str, index: int) -> tuple[bytes, bytes]:
    rendering = render(record(split, index).scene)
    return _encode(rendering.image[..., ::-1]), _encode(rendering.mask)


@lru_cache(maxsize=8192)
def _draw_depth(split: str, index: int) -> tuple[bytes, bytes]:
    image, depth = draw_depth_record(split, index)
    return _encode(image[..., ::-1]), _encode(depth)


def _encode(pixels: np.ndarray) -> bytes:
    """PNG bytes of what OpenCV writes, BGR; about 4 kB."""
    return cv2.imencode('.png', pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


class ToyBirdsBackend(BaseStorageBackend):
    """Serves drawn pictures and masks by path."""

    prefix: ClassVar[str] = 'toybirds'
    truth: ClassVar[str] = 'mask'
    sizes: ClassVar[Mapping[str, int]] = SIZES
    draw = staticmethod(_draw_birds)

    @classmethod
    def image_path(cls, split: str, index: int) -> str:
        """Path of a record's picture."""
        return f'{cls.prefix}://{split}/{index:06d}.png'

    @classmethod
    def truth_path(cls, split: str, index: int) -> str:
        """Path of what is true of a record: its mask, or its depth."""
        return f'{cls.prefix}://{split}/{index:06d}_{cls.truth}.png'

    @classmethod
    def _match(cls, filepath: str) -> re.Match | None:
        found = re.fullmatch(rf'{cls.prefix}://(\w+)/(\d+)(_{cls.truth})?\.png', str(filepath))
        return found if found is not None and found[1] in cls.sizes else None

    def get(self, filepath: str) -> bytes:
        """PNG bytes of a path.

        Raises:
            FileNotFoundError: If the path does not name a picture or the truth of a split.
        """
        match = self._match(filepath)
        if match is None:
            raise FileNotFoundError(
                f'{str(filepath)!r} is not drawn here; paths look like '
                f'{self.prefix}://SPLIT/000123.png or …_{self.truth}.png with SPLIT one of '
                f'{tuple(self.sizes)}'
            )
        return self.draw(match[1], int(match[2]))[match[3] is not None]

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        raise ValueError(f'{str(filepath)!r} is a picture, not a text')

    def exists(self, filepath: str) -> bool:
        return self._match(filepath) is not None

    def isfile(self, filepath: str) -> bool:
        return self.exists(filepath)


class ToyDepthBackend(ToyBirdsBackend):
    """Serves drawn pictures and depth maps by path."""

    prefix = 'toydepth'
    truth = 'depth'
    sizes = DEPTH_SIZES
    draw = staticmethod(_draw_depth)


for _backend in (ToyBirdsBackend, ToyDepthBackend):
    register_backend(_backend.prefix, _backend, force=True, prefixes=_backend.prefix)
