# SPDX-License-Identifier: Apache-2.0
"""A file backend of MMEngine that draws instead of reading.

``toybirds://SPLIT/000123.png`` is the picture of record 123 and ``toybirds://SPLIT/000123_mask.png``
its mask, as PNG bytes. Importing this module registers the backend.
"""

from __future__ import annotations

import re
from functools import lru_cache

import cv2
from mmengine.fileio import BaseStorageBackend, register_backend

from mmgap.toyworld.renderer import render
from mmgap.toyworld.splits import SIZES, record

PREFIX = 'toybirds'
_PATTERN = re.compile(rf'{PREFIX}://(\w+)/(\d+)(_mask)?\.png')


def image_path(split: str, index: int) -> str:
    return f'{PREFIX}://{split}/{index:06d}.png'


def mask_path(split: str, index: int) -> str:
    return f'{PREFIX}://{split}/{index:06d}_mask.png'


@lru_cache(maxsize=8192)
def _draw(split: str, index: int) -> tuple[bytes, bytes]:
    """PNG bytes of picture and mask; about 8 kB a record are kept."""
    rendering = render(record(split, index).scene)
    arrays = (rendering.image[..., ::-1], rendering.mask)  # OpenCV writes BGR
    encoded = [cv2.imencode('.png', a, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1] for a in arrays]
    return encoded[0].tobytes(), encoded[1].tobytes()


class ToyBirdsBackend(BaseStorageBackend):
    """Serves drawn pictures and masks by path."""

    def get(self, filepath: str) -> bytes:
        """PNG bytes of a ``toybirds://`` path.

        Raises:
            FileNotFoundError: If the path does not name a picture or mask of a split.
        """
        match = _PATTERN.fullmatch(str(filepath))
        if match is None or match[1] not in SIZES:
            raise FileNotFoundError(
                f'{str(filepath)!r} is not drawn here; paths look like '
                f'{PREFIX}://SPLIT/000123.png or …_mask.png with SPLIT one of {tuple(SIZES)}'
            )
        return _draw(match[1], int(match[2]))[match[3] is not None]

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        raise ValueError(f'{str(filepath)!r} is a picture, not a text')

    def exists(self, filepath: str) -> bool:
        match = _PATTERN.fullmatch(str(filepath))
        return match is not None and match[1] in SIZES

    def isfile(self, filepath: str) -> bool:
        return self.exists(filepath)


register_backend(PREFIX, ToyBirdsBackend, force=True, prefixes=PREFIX)
