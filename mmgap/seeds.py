# SPDX-License-Identifier: Apache-2.0
"""Every random draw of mmgap derives from a run's seed and the name of what it is for.

Nothing depends on how many numbers were drawn before, so an interrupted run that starts again
draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on all ``parts`` and on nothing else."""
    digest = hashlib.sha256('\x1f'.join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], 'little') >> 1


def derive_rng(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(*parts))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generator; put their states back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the random state of Python, NumPy and PyTorch back afterwards, on CPU and own GPU."""
    plain, array = random.getstate(), np.random.get_state()
    try:
        own = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(own):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)
