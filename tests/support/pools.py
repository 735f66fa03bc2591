# SPDX-License-Identifier: Apache-2.0
"""Sample pools of noise, for tests of what reads them, and what writes pools otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmgap.feedback import Critic
from mmgap.pool import SamplePool

ABOUT = dict(
    label=1,
    group=None,
    source_index=3,
    source_group=2,
    seed=5,
    prompt_id='p@0',
    generator='g',
    num_inference_steps=2,
    target_loss_source=0.5,
    target_loss_image=None,
    feedback=-1.5,
    round=0,
)


def picture(value: int) -> np.ndarray:
    """A ``(6, 5, 3)`` uint8 image of noise."""
    return np.random.default_rng(value).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def fill_pool(folder: Path, count: int) -> SamplePool:
    """A pool of two classes and prompts in turn; goes on where it stands."""
    pool = SamplePool(folder)
    for i in range(len(pool), count):
        about = dict(ABOUT, label=i % 2, seed=i, prompt_id=f'p{i % 2}@0')
        pool.append(picture(i), **about)
    return pool


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the files of a pool."""
    return {p.name: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


class Interrupted(SamplePool):
    """A pool in a process that dies after some images."""

    def __init__(self, folder: Path, room: int) -> None:
        super().__init__(folder)
        self.room = room

    def append(self, *args, **kwargs):
        if len(self) >= self.room:
            raise KeyboardInterrupt
        return super().append(*args, **kwargs)


class EverySecond(Critic):
    """Drops what a coin of the image's own pixels says."""

    def __init__(self) -> None:
        super().__init__(threshold=0.5)

    def fingerprint(self) -> str:
        return 'coin'

    def __call__(self, images, masks, labels):
        return images.flatten(1).double().sum(dim=1).mul(1e4).frac()
