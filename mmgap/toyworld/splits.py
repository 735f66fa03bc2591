# SPDX-License-Identifier: Apache-2.0
"""Which scene each record of each ToyBirds split shows; nothing depends on a split's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgap.toyworld.renderer import WORLD_VERSION
from mmgap.toyworld.vocabulary import BIRDS, LAND_PLACES, TIMES, WATER_PLACES, WEATHERS, Scene

# Default number of records. The order is part of the scenes' seeds: only append.
SIZES = {
    'train': 1200,
    'val_id': 400,
    'val': 400,
    'guidance': 64,
    'guidance_shift': 16,
    'test': 1000,
    'test_shift': 1000,
    'test_final': 1000,
    'test_final_2': 1000,
    'test_shift_2': 1000,
    'test_id_2': 1000,
    'test_final_3': 1000,
    'test_shift_3': 1000,
    'test_id_3': 1000,
}
GROUPS = tuple(f'{bird}-{place}' for bird in BIRDS for place in ('land', 'water'))
_CORRELATED = ('train', 'val_id', 'test_id_2', 'test_id_3')
_SHIFTED = ('guidance_shift', 'test_shift', 'test_shift_2', 'test_shift_3')
UNLABELLED = ('guidance', 'guidance_shift')
CLEAR_DAY = 0.85  # share of clear days wherever the conditions are those of training
_STRIDE = 10_000_000  # scene seeds per split


@dataclass(frozen=True)
class Record:
    """One record of a split.

    Attributes:
        scene: What the picture shows.
        label: 0 for a landbird, 1 for a waterbird.
        place: 0 on land (forest, bamboo), 1 on water (ocean, lake).
    """

    scene: Scene
    label: int
    place: int

    @property
    def group(self) -> int:
        return 2 * self.label + self.place


def record(split: str, index: int) -> Record:
    """Draws the record ``index`` of a split from ``(world version, split, index)`` alone.

    Raises:
        ValueError: If the split is unknown or the index is outside [0, 10 000 000).
    """
    if split not in SIZES:
        raise ValueError(f'split={split!r} is unknown; use one of {tuple(SIZES)}')
    if not 0 <= index < _STRIDE:
        raise ValueError(f'index={index} of split {split!r} must lie in [0, {_STRIDE})')
    number = list(SIZES).index(split)
    rng = np.random.default_rng([WORLD_VERSION, number, index])
    label, place = (index % 2, index % 2) if split in _CORRELATED else divmod(index % 4, 2)
    name = (LAND_PLACES, WATER_PLACES)[place][int(rng.integers(2))]
    time, weather = 'day', 'clear'
    if split in _SHIFTED:
        time, weather = 'night', 'fog'
    elif rng.random() >= CLEAR_DAY:
        other = int(rng.integers(1, len(TIMES) * len(WEATHERS)))  # 0 would be the clear day
        time, weather = TIMES[other // len(WEATHERS)], WEATHERS[other % len(WEATHERS)]
    return Record(Scene(BIRDS[label], name, time, weather, number * _STRIDE + index), label, place)
