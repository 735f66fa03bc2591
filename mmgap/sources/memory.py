# SPDX-License-Identifier: Apache-2.0
"""Sources that have been read, and those that will be wanted next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from mmengine.logging import MMLogger

LIMIT = 2 * 2**30  # bytes


class SourceMemory:
    """Remembers decoded, resized sources by their index, and reads ahead.

    A search meets each source many times, and decoding takes longer than all else that the CPU does
    in a step.

    Args:
        read: Reads the arrays of one source.
        count: Number of sources.
        limit: Most bytes that are remembered; the source not used for longest goes first.
    """

    def __init__(
        self, read: Callable[[int], tuple[np.ndarray, ...]], count: int, limit: int = LIMIT
    ) -> None:
        self._read = read
        self._count = count
        self._limit = limit
        self._most: int | None = None  # sources; known once one has been read
        self._known: OrderedDict[int, Future] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, index: int) -> tuple[np.ndarray, ...]:
        """The arrays of a source. What :meth:`prefetch` met in reading it is raised here."""
        future = self._known.get(index)
        if future is None:
            future = Future()
            future.set_result(self._read(index))
            self._known[index] = future
        self._known.move_to_end(index)
        try:
            arrays = future.result()
        except Exception:
            del self._known[index]  # a file may have been mended by the next time
            raise
        if self._most is None:
            self._most = self._measure(arrays)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return arrays

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read sources that will be wanted, in another thread."""
        for index in dict.fromkeys(map(int, indices)):
            if index in self._known:
                self._known.move_to_end(index)
                continue
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix='mmgap-sources')
            self._known[index] = self._thread.submit(self._read, index)

    def _measure(self, arrays: tuple[np.ndarray, ...]) -> int:
        """How many sources like this one may be remembered."""
        each = sum(array.nbytes for array in arrays)
        most = max(1, self._limit // each)
        kept = min(self._count, most)
        MMLogger.get_current_instance().info(
            f'[gap] up to {kept} of {self._count} sources stay in memory once they are read, '
            f'{kept * each / 2**20:.0f} MiB'
        )
        return most
