# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import numpy as np
import pytest

from mmgap.pool import SamplePool
from mmgap.synthesis.pool_writer import GeneratedImage, PoolWriter
from tests.support.pools import ABOUT


def batch(first: int, count: int = 3) -> list[GeneratedImage]:
    images = [np.full((4, 4, 3), first + i, np.uint8) for i in range(count)]
    return [
        GeneratedImage(image, None, dict(ABOUT, seed=first + i)) for i, image in enumerate(images)
    ]


def test_batches_are_written_in_their_order_while_others_are_made(tmp_path, monkeypatch):
    append, threads = SamplePool.append, set()

    def watched(self, *args, **kwargs):
        threads.add(threading.current_thread())
        return append(self, *args, **kwargs)

    monkeypatch.setattr(SamplePool, 'append', watched)
    pool = SamplePool(tmp_path)
    with PoolWriter(pool, 'name', dict(eta=1.0)) as writer:
        for first in (0, 3, 6):
            writer.write(batch(first))
            assert writer.length == first + 3
    assert threads and threading.current_thread() not in threads
    assert [sample.seed for sample in SamplePool(tmp_path).samples] == list(range(9))
    assert pool.generators == dict(name=dict(eta=1.0))


def test_complete_images_stay_whatever_happens(tmp_path, monkeypatch):
    pool = SamplePool(tmp_path)
    with pytest.raises(KeyboardInterrupt), PoolWriter(pool, 'name', {}) as writer:
        writer.write(batch(0))
        raise KeyboardInterrupt
    assert len(SamplePool(tmp_path)) == 3
    append = SamplePool.append

    def full(self, *args, **kwargs):
        if len(self) == 4:
            raise OSError('No space left on device')
        return append(self, *args, **kwargs)

    monkeypatch.setattr(SamplePool, 'append', full)
    with pytest.raises(OSError, match='No space left'), PoolWriter(pool, 'name', {}) as writer:
        writer.write(batch(3))
    assert len(SamplePool(tmp_path)) == 4
    # One that comes late does not hide what ended the run.
    monkeypatch.setattr(SamplePool, 'append', lambda *args, **kwargs: full(pool, *args, **kwargs))
    with pytest.raises(KeyboardInterrupt) as caught, PoolWriter(pool, 'name', {}) as writer:
        writer.write(batch(4))
        raise KeyboardInterrupt
    assert 'No space left' in ''.join(caught.value.__notes__)
