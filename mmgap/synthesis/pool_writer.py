# SPDX-License-Identifier: Apache-2.0
"""Writes images while the next ones are drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmgap.pool import SamplePool, encode_png


@dataclass
class GeneratedImage:
    """An image on its way into a pool.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 RGB.
        depth: ``(H, W)`` uint16, if the label is a depth map.
        fields: Those of :class:`~mmgap.manifest.Sample` but the files and their sizes.
    """

    pixels: np.ndarray
    depth: np.ndarray | None
    fields: dict[str, Any]


class PoolWriter:
    """Appends batches to a pool from a thread of its own, whole and in their order.

    Use it as a context: leaving it waits for what is under way, also after an error, so that
    complete images stay. Nothing else may change the pool before :meth:`wait`.

    Args:
        pool: The pool.
        generator: Fingerprint of what draws them.
        settings: Its settings, for those who want to know what drew an image.

    Attributes:
        length: Samples of the pool, with those that are under way.
    """

    def __init__(self, pool: SamplePool, generator: str, settings: Mapping[str, Any]) -> None:
        self.pool = pool
        self._generator = generator
        self._settings = settings
        self.length = len(pool)
        self._encoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def write(self, images: Sequence[GeneratedImage]) -> None:
        """Append a batch; returns at once, unless the one before is still under way.

        Raises:
            OSError: When the disk was full for the batch before; none of this one is written.
        """
        self.wait()
        self.length += len(images)
        self._pending = self._thread.submit(self._append, list(images))

    def wait(self) -> None:
        """Wait until all is on the disk.

        Raises:
            OSError: When the disk is full; complete images stay.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            finally:
                self.length = len(self.pool)

    def __enter__(self) -> PoolWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except OSError as late:
            if error is None:
                raise
            error.add_note(f'the images before could not be written: {late}')
        finally:
            self._thread.shutdown()
            self._encoders.shutdown()

    def _append(self, images: Sequence[GeneratedImage]) -> None:
        self.pool.add_generator(self._generator, self._settings)
        # PNG takes a tenth of the time that a GPU takes to draw.
        files = self._encoders.map(encode_png, [image.pixels for image in images])
        for file, image in zip(files, images, strict=True):
            self.pool.append(file, image.depth, **image.fields)
