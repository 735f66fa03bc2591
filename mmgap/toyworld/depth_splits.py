# SPDX-License-Identifier: Apache-2.0
"""Which scene each record of each ToyDepth split shows; nothing depends on a split's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgap.toyworld.renderer import WORLD_VERSION, render
from mmgap.toyworld.vocabulary import BIRDS, PLACES, Scene

# Default number of records. The order is part of the scenes' seeds: only append.
DEPTH_SIZES = {
    'train': 1200,
    'val': 300,
    'guidance': 32,
    'test_clear': 300,
    'test_night': 300,
    'test_fog': 300,
    'test_corruptions': 300,
    'test_clear_2': 300,
    'test_night_2': 300,
    'test_fog_2': 300,
    'test_corruptions_2': 300,
    'test_clear_3': 300,
    'test_night_3': 300,
    'test_fog_3': 300,
    'test_corruptions_3': 300,
}
DEPTH_UNLABELLED = ('guidance',)
# Time, weather and whether the picture is corrupted.
SHIFTS = {
    'clear': ('day', 'clear', False),
    'night': ('night', 'clear', False),
    'fog': ('day', 'fog', False),
    'corruptions': ('day', 'clear', True),
}
# The fifteen common corruptions (Hendrycks and Dietterich, arXiv 1903.12261).
CORRUPTIONS = (
    'gaussian_noise',
    'shot_noise',
    'impulse_noise',
    'defocus_blur',
    'glass_blur',
    'motion_blur',
    'zoom_blur',
    'snow',
    'frost',
    'fog',
    'brightness',
    'contrast',
    'elastic_transform',
    'pixelate',
    'jpeg_compression',
)
# Metres. What is as far, the sky above all, is unknown, as to any sensor.
MAX_DEPTH = 60.0
SEVERITY = 3  # of 5
# Apart from the scenes of ToyBirds' splits and from those that the toy models learn from.
_FIRST = 1000
_STRIDE = 10_000_000  # scene seeds per split


@dataclass(frozen=True)
class DepthRecord:
    """One record of a split.

    Attributes:
        scene: What the picture shows.
        shift: Its name among ``SHIFTS``.
        corruption: Name of the corruption of the picture; None for none.
    """

    scene: Scene
    shift: str
    corruption: str | None


def shift_of(split: str, index: int) -> str:
    """The shift of a record: by the split's name, or in turn where a split has several."""
    several = {'train': ('clear',), 'val': ('clear', 'night', 'fog'), 'guidance': ('night', 'fog')}
    shifts = several.get(split) or (split.removeprefix('test_').rstrip('_23'),)
    return shifts[index % len(shifts)]


def depth_record(split: str, index: int) -> DepthRecord:
    """Draws the record ``index`` of a split from ``(world version, split, index)`` alone.

    Raises:
        ValueError: If the split is unknown or the index is outside [0, 10 000 000).
    """
    if split not in DEPTH_SIZES:
        raise ValueError(f'split={split!r} is unknown; use one of {tuple(DEPTH_SIZES)}')
    if not 0 <= index < _STRIDE:
        raise ValueError(f'index={index} of split {split!r} must lie in [0, {_STRIDE})')
    number = _FIRST + list(DEPTH_SIZES).index(split)
    rng = np.random.default_rng([WORLD_VERSION, number, index])
    bird = (*BIRDS, None)[int(rng.integers(3))]
    place = PLACES[int(rng.integers(len(PLACES)))]
    shift = shift_of(split, index)
    time, weather, corrupted = SHIFTS[shift]
    corruption = CORRUPTIONS[index % len(CORRUPTIONS)] if corrupted else None
    return DepthRecord(
        Scene(bird, place, time, weather, number * _STRIDE + index), shift, corruption
    )


def draw_depth_record(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and depth of a record.

    Returns:
        ``(64, 64, 3)`` uint8 RGB and ``(64, 64)`` uint16 millimetres, 0 where unknown.
    """
    drawn = depth_record(split, index)
    rendering = render(drawn.scene)
    image = rendering.image
    if drawn.corruption is not None:
        image = corrupt(image, drawn.corruption, seed=index)
    known = rendering.depth < MAX_DEPTH
    depth = np.where(known, np.round(rendering.depth * 1000), 0).astype(np.uint16)
    return image, depth


def corrupt(image: np.ndarray, name: str, seed: int, severity: int = SEVERITY) -> np.ndarray:
    """A corrupted picture; the same for the same seed, and NumPy's own state stays as it is.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        name: One of ``CORRUPTIONS``.
        seed: Of its noise.
        severity: 1 to 5.

    Raises:
        ModuleNotFoundError: If ``imagecorruptions-imaug`` is not installed.
    """
    from imagecorruptions import corrupt as corrupt_with

    # Two of them draw from a generator of their own.
    own = dict(seed=seed) if name in ('impulse_noise', 'glass_blur') else {}
    state = np.random.get_state()
    try:
        np.random.seed(seed % 2**32)
        return corrupt_with(image, severity=severity, corruption_name=name, **own)
    finally:
        np.random.set_state(state)
