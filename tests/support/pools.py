# SPDX-License-Identifier: Apache-2.0
"""Sample pools of noise, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
