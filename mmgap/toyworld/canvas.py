# SPDX-License-Identifier: Apache-2.0
"""The drawing ground: a picture with depth, and the noise tables that texture it."""

from __future__ import annotations

from functools import cache

import numpy as np

SIZE = 64
FAR = 100.0  # metres; the depth of the sky
_CAMERA = 90.0  # focal length (px) times camera height (m): ground depth = 90 / rows below horizon
_TABLE = 192

ROWS = np.arange(SIZE, dtype=np.float32)
YY, XX = np.meshgrid(ROWS, ROWS, indexing='ij')

# Standard deviations of the Gaussian blur (rows, columns) in pixels, per kind of noise.
_KINDS = {
    'cloud': (4.0, 9.0),
    'blob': (3.0, 3.0),
    'leaf': (1.1, 1.1),
    'grain': (0.45, 0.45),
    'swell': (1.0, 5.0),
    'upright': (5.0, 0.7),
    'broad': (8.0, 8.0),
    'patch': (1.2, 4.0),
}


@cache
def noise_table(kind: str) -> np.ndarray:
    """A (192, 192) float32 table of smooth noise, mean 0, standard deviation 1."""
    rng = np.random.default_rng([71, list(_KINDS).index(kind)])
    table = rng.standard_normal((_TABLE, _TABLE))
    freq = np.fft.fftfreq(_TABLE)
    sy, sx = _KINDS[kind]
    blur = np.exp(-2 * np.pi**2 * ((sy * freq[:, None]) ** 2 + (sx * freq[None]) ** 2))
    table = np.fft.ifft2(np.fft.fft2(table) * blur).real
    table = (table - table.mean()) / table.std()
    # Rounded, so that the last bits of an FFT library cannot reach a pixel.
    return (np.round(table * 256) / 256).astype(np.float32)


@cache
def rain_table() -> np.ndarray:
    """A (192, 192) float32 table of slanted streaks in [0, 1]."""
    rng = np.random.default_rng([72])
    table = np.zeros((_TABLE, _TABLE), np.float32)
    for _ in range(850):
        y, x = rng.integers(_TABLE, size=2)
        length, strength = int(rng.integers(6, 11)), rng.uniform(0.5, 1.0)
        for k in range(length):
            cell = ((y + k) % _TABLE, (x - k // 3) % _TABLE)
            table[cell] = max(table[cell], strength)
    return table


class Canvas:
    """A picture in the making.

    Attributes:
        image: (64, 64, 3) float32, RGB, about [0, 1], in daylight.
        depth: (64, 64) float32, metres; ``FAR`` where there is sky.
        horizon: Row of the horizon.
        time: Time of day; it chooses the sky's colours and lit windows, nothing else here.
    """

    def __init__(self, rng: np.random.Generator, time: str) -> None:
        self.rng = rng
        self.time = time
        self.image = np.empty((SIZE, SIZE, 3), np.float32)
        self.depth = np.full((SIZE, SIZE), FAR, np.float32)
        self.horizon = SIZE

    def noise(self, kind: str, height: int = SIZE, width: int = SIZE) -> np.ndarray:
        """A random crop (view) of a noise table."""
        top, left = self.rng.integers(0, (_TABLE - height + 1, _TABLE - width + 1))
        return noise_table(kind)[top : top + height, left : left + width]

    def line(self, kind: str = 'broad') -> np.ndarray:
        """A random row of 64 smooth values, standard deviation about 1."""
        top, left = self.rng.integers(0, (_TABLE, _TABLE - SIZE + 1))
        return noise_table(kind)[top, left : left + SIZE]

    def colour(self, red: float, green: float, blue: float, spread: float = 0.03) -> np.ndarray:
        """A colour with a little individual variation."""
        return np.array((red, green, blue), np.float32) + self.rng.uniform(
            -spread, spread, 3
        ).astype(np.float32)

    def ground_depth(self, horizon: int) -> np.ndarray:
        """Sets the ground plane below ``horizon``; returns depth per row, (64 - horizon,)."""
        self.horizon = horizon
        depth = np.minimum(_CAMERA / (ROWS[horizon:] - horizon + 1.0), 60.0)
        self.depth[horizon:] = depth[:, None]
        return depth

    def fill(self, top: int, bottom: int, upper: np.ndarray, lower: np.ndarray) -> None:
        """Fills rows ``top:bottom`` with a vertical gradient of two colours."""
        mix = np.linspace(0, 1, max(bottom - top, 1), dtype=np.float32)[:, None]
        self.image[top:bottom] = (upper * (1 - mix) + lower * mix)[: bottom - top, None]

    def shade(self, top: int, texture: np.ndarray, amount: float) -> None:
        """Brightens and darkens rows from ``top`` on by a texture, (64 - top, 64)."""
        self.image[top:] *= (1 + amount * texture)[..., None]

    def paint(self, mask: np.ndarray, colour: np.ndarray, depth: float | None = None) -> None:
        """Paints where a (64, 64) boolean mask is set."""
        self.image[mask] = colour
        if depth is not None:
            self.depth[mask] = depth
