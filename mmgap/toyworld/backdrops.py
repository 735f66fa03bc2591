# SPDX-License-Identifier: Apache-2.0
"""Backdrops: colour x pattern, a flat wall behind the bird. They have nothing to do with birds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmgap.toyworld.canvas import SIZE, XX, YY, Canvas

WALL_DEPTH = 5.0  # metres

RGB = {
    'red': (0.80, 0.12, 0.12),
    'orange': (0.95, 0.52, 0.10),
    'yellow': (0.95, 0.85, 0.18),
    'green': (0.16, 0.58, 0.20),
    'teal': (0.08, 0.58, 0.58),
    'blue': (0.15, 0.30, 0.82),
    'purple': (0.50, 0.18, 0.68),
    'pink': (0.97, 0.55, 0.72),
    'brown': (0.45, 0.27, 0.14),
    'black': (0.13, 0.13, 0.14),
    'white': (0.92, 0.92, 0.91),
    'grey': (0.52, 0.52, 0.53),
}


def _striped_curtain(c: Canvas, period: float) -> np.ndarray:
    folds = XX + 1.2 * np.sin(YY / 13.0 + c.rng.uniform(0, 6))
    return 0.5 + 0.5 * np.sign(np.sin(6.2832 * folds / period + c.rng.uniform(0, 6)))


def _brick_wall(c: Canvas, period: float) -> np.ndarray:
    height = int(period * 0.6)
    row = YY // height
    joint = (YY % height < 1) | ((XX + (row % 2) * (period / 2)) % period < 1.2)
    return np.where(
        joint, 0.0, 0.80 + 0.2 * ((row * 7 + (XX + (row % 2) * (period / 2)) // period * 5) % 3) / 2
    )


def _checkerboard(c: Canvas, period: float) -> np.ndarray:
    x, y = XX + c.rng.integers(0, 16), YY + c.rng.integers(0, 16)
    return (x // (period * 0.6) + y // (period * 0.6)) % 2


def _dotted_wallpaper(c: Canvas, period: float) -> np.ndarray:
    y = YY + c.rng.uniform(0, 9)
    x = XX + c.rng.uniform(0, 9) + (y // period % 2) * (period / 2)
    radius = np.hypot(x % period - period / 2, y % period - period / 2)
    return (radius > 0.27 * period).astype(np.float32)


def _zigzag_carpet(c: Canvas, period: float) -> np.ndarray:
    fold = np.abs((XX + c.rng.uniform(0, 9)) % period - period / 2)
    return ((YY + fold + c.rng.uniform(0, 9)) % period < period / 2).astype(np.float32)


def _wooden_fence(c: Canvas, period: float) -> np.ndarray:
    width = period * 0.9
    plank = (XX + c.rng.uniform(0, 9)) // width
    gap = (XX + 0 * YY - plank * width + 20 * width) % width < 1.2
    grain = 0.72 + 0.12 * c.noise('upright') + 0.18 * ((plank * 5) % 3) / 2
    return np.where(gap, 0.0, grain)


def _tiled_floor(c: Canvas, period: float) -> np.ndarray:
    x, y = XX + c.rng.uniform(0, 9), YY + c.rng.uniform(0, 9)
    joint = (x % period < 1.6) | (y % period < 1.6)
    gleam = 0.82 + 0.18 * ((x % period) > (y % period))
    return np.where(joint, 0.0, gleam)


def _plaid_blanket(c: Canvas, period: float) -> np.ndarray:
    x, y = XX + c.rng.uniform(0, 9), YY + c.rng.uniform(0, 9)
    broad = (x % (1.5 * period) < 0.6 * period) * 0.5 + (y % (1.5 * period) < 0.6 * period) * 0.5
    thin = (np.abs(x % (1.5 * period) - 1.05 * period) < 0.7) | (
        np.abs(y % (1.5 * period) - 1.05 * period) < 0.7
    )
    return np.where(thin, 0.0, 1.0 - 0.75 * broad)


def _ringed_mural(c: Canvas, period: float) -> np.ndarray:
    cy, cx = c.rng.uniform(14, 50, 2)
    return (np.hypot(XX - cx, YY - cy) % (period * 0.85) < period * 0.42).astype(np.float32)


def _diamond_quilt(c: Canvas, period: float) -> np.ndarray:
    u, v = (XX + YY + c.rng.uniform(0, 9)), (XX - YY + c.rng.uniform(60, 70))
    p = period * 1.25
    seam = (u % p < 1.6) | (v % p < 1.6)
    return np.where(seam, 0.0, 0.55 + 0.45 * (((u // p) + (v // p)) % 2))


def _stone_mosaic(c: Canvas, period: float) -> np.ndarray:
    cells = int(round(SIZE / period)) + 1
    grid = np.arange(cells) * period
    jitter = c.rng.uniform(0.0, 0.85 * period, (2, cells, cells))
    py, px = (grid[:, None] + jitter[0]).ravel(), (grid[None] + jitter[1]).ravel()
    py, px = py.astype(np.float32), px.astype(np.float32)
    # Two nearest stones at half resolution; doubled afterwards (it is the dearest pattern).
    d = (YY[::2, ::2, None] - py) ** 2 + (XX[::2, ::2, None] - px) ** 2
    nearest = np.argmin(d, -1)
    tone = (nearest * 7 % 5) / 4.0
    edge = np.zeros_like(tone)
    edge[:, 1:] = nearest[:, 1:] != nearest[:, :-1]
    edge[1:] = np.maximum(edge[1:], nearest[1:] != nearest[:-1])
    stone = np.where(edge > 0, 0.0, 0.55 + 0.45 * tone)
    return stone.repeat(2, 0).repeat(2, 1)


def _scaly_roof(c: Canvas, period: float) -> np.ndarray:
    height = period * 0.55
    y = YY + c.rng.uniform(0, 9)
    row = y // height
    x = (XX + (row % 2) * (period / 2)) % period - period / 2
    r = np.hypot(x, (y % height) * period / (2 * height))
    return np.where(r > period * 0.44, 0.0, 1.0 - 0.45 * r / (period * 0.44))


_PATTERNS: dict[str, tuple[Callable[[Canvas, float], np.ndarray], float]] = {
    'striped curtain': (_striped_curtain, 10.0),
    'brick wall': (_brick_wall, 13.0),
    'checkerboard': (_checkerboard, 14.0),
    'dotted wallpaper': (_dotted_wallpaper, 11.0),
    'zigzag carpet': (_zigzag_carpet, 12.0),
    'wooden fence': (_wooden_fence, 10.0),
    'tiled floor': (_tiled_floor, 12.0),
    'plaid blanket': (_plaid_blanket, 13.0),
    'ringed mural': (_ringed_mural, 14.0),
    'diamond quilt': (_diamond_quilt, 14.0),
    'stone mosaic': (_stone_mosaic, 12.0),
    'scaly roof': (_scaly_roof, 13.0),
}


def paint_backdrop(c: Canvas, name: str) -> None:
    """Paints a backdrop such as 'red striped curtain' over the whole canvas."""
    word, pattern = name.split(' ', 1)
    texture, period = _PATTERNS[pattern]
    tone = texture(c, period * c.rng.uniform(0.9, 1.12)).astype(np.float32)[..., None]
    main = c.colour(*RGB[word], spread=0.04)
    # The second colour is a shade of the first: lighter for dark colours, darker for light ones.
    if main.mean() < 0.45:
        other = main + (1 - main) * c.rng.uniform(0.5, 0.68)
    else:
        other = main * c.rng.uniform(0.40, 0.55)
    c.image[:] = other + tone * (main - other)
    c.image *= (1.03 + 0.05 * c.noise('broad') - 0.0012 * YY)[..., None]
    c.depth[:] = WALL_DEPTH
