# SPDX-License-Identifier: Apache-2.0
"""Writes images while the next ones are drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mmgap.pool import SamplePool, encode_png

# Pixels, depth map or None, fields of a sample.
Made = tuple[np.ndarray, np.ndarray | None, dict[str, Any]]


class PoolWriter:
    """Appends batches to a pool from a thread of its own, whole and in their order.

    Use it as a context: leaving it waits for what is under way, also after an error, so that
    complete images stay. Nothing else may change the pool before :meth:`wait`.

    Args:
        pool: The pool.
        generator: Fingerprint of what draws them.
        about: Its settings, for those who want to know what drew an image.

    Attributes:
        length: Samples of the pool, with those that are under way.
    """

    def __init__(self, pool: SamplePool, generator: str, about: Mapping[str, Any]) -> None:
        self.pool = pool
        self._generator = (generator, about)
        self.length = len(pool)
        self._encoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def write(self, made: Sequence[Made]) -> None:
        """Append a batch; returns at once, unless the one before is still under way.

        Raises:
            OSError: When the disk was full for the batch before; none of this one is written.
        """
        self.wait()
        self.length += len(made)
        self._pending = self._thread.submit(self._append, list(made))

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

    def _append(self, made: Sequence[Made]) -> None:
        self.pool.add_generator(*self._generator)
        # PNG takes a tenth of the time that a GPU takes to draw.
        images = self._encoders.map(encode_png, [image for image, _, _ in made])
        for image, (_, depth, about) in zip(images, made, strict=True):
            self.pool.append(image, depth, **about)
