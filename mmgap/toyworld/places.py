# SPDX-License-Identifier: Apache-2.0
"""The nine places, each a distinct texture; every function paints a daylight canvas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmgap.toyworld.canvas import FAR, ROWS, SIZE, XX, YY, Canvas

_SKIES = {
    'day': ((0.30, 0.56, 0.92), (0.74, 0.87, 0.97)),
    'dusk': ((0.42, 0.26, 0.50), (1.00, 0.60, 0.28)),
    'night': ((0.02, 0.03, 0.13), (0.10, 0.14, 0.31)),
}


def _sky(c: Canvas, bottom: int) -> None:
    upper, lower = (c.colour(*rgb) for rgb in _SKIES[c.time])
    c.fill(0, bottom, upper, lower)
    if c.time == 'night':
        rows, columns = c.rng.integers(0, (max(bottom, 1), SIZE), (7, 2)).T
        c.image[rows, columns] = 0.85
    else:
        cloud = np.clip(c.noise('cloud', bottom) - 0.7, 0, 1)[..., None] * 0.5
        bright = np.float32(1.0) if c.time == 'day' else c.colour(1.0, 0.75, 0.62)
        c.image[:bottom] += cloud * (bright - c.image[:bottom])


def _below(
    c: Canvas, line: np.ndarray, colour: np.ndarray, depth: float, until: int = SIZE
) -> np.ndarray:
    """Paints everything below a ridge line (64,) of rows, down to row ``until``."""
    mask = (YY >= line) & (YY < until)
    c.paint(mask, colour, depth)
    return mask


def ocean(c: Canvas) -> None:
    """Deep blue to the horizon, swells that grow nearer, white caps."""
    horizon = int(c.rng.integers(20, 28))
    _sky(c, horizon)
    depth = c.ground_depth(horizon)
    c.fill(horizon, SIZE, c.colour(0.16, 0.46, 0.72), c.colour(0.02, 0.20, 0.46))
    rows = ROWS[horizon:] - horizon
    phase = 9.0 * np.log1p(rows / 3.0) + c.rng.uniform(0, 6.3)
    swell = np.sin(phase[:, None] * 1.4 + 1.5 * c.noise('cloud', len(depth)))
    c.shade(horizon, swell, 0.26)
    caps = (swell + 0.55 * c.noise('swell', len(depth))) > 1.25
    c.image[horizon:][caps] = 0.90


def lake(c: Canvas) -> None:
    """Mountains and their reflection in pale, calm water; a pebble shore in front."""
    horizon = int(c.rng.integers(25, 31))
    _sky(c, horizon)
    c.ground_depth(horizon)
    ridge = horizon - 10 - 3.5 * c.line() - 1.2 * c.line('blob')
    peaks = _below(c, ridge, c.colour(0.46, 0.44, 0.54), 60.0, horizon)
    c.image[peaks & (YY < ridge + 3)] = (0.93, 0.94, 0.98)  # snow on the ridge
    woods = horizon - 3.2 - 0.9 * c.line('leaf')
    _below(c, woods, c.colour(0.13, 0.30, 0.20), 50.0, horizon)
    mirror = c.image[horizon - 1 :: -1][: SIZE - horizon]
    water = c.colour(0.50, 0.74, 0.76)
    c.image[horizon:] = water
    c.image[horizon : horizon + len(mirror)] = 0.62 * mirror + 0.38 * water
    rows = ROWS[horizon:, None] - horizon
    ripple = np.sin(rows * 1.9 + c.noise('cloud', SIZE - horizon))
    c.shade(horizon, ripple, 0.05)
    shore = _below(c, c.rng.uniform(56, 60) + 1.6 * c.line(), c.colour(0.60, 0.52, 0.42), 2.7)
    c.image[shore] *= (1 + 0.22 * c.noise('leaf')[shore])[:, None]


def marsh(c: Canvas) -> None:
    """Murky olive water with mats of moss, and reeds with brown heads."""
    horizon = int(c.rng.integers(22, 28))
    _sky(c, horizon)
    c.ground_depth(horizon)
    _below(c, horizon - 2 - c.line('blob'), c.colour(0.38, 0.42, 0.22), 55.0, horizon)
    c.fill(horizon, SIZE, c.colour(0.52, 0.52, 0.36), c.colour(0.28, 0.27, 0.13))
    moss = c.noise('patch', SIZE - horizon) > 0.45
    c.image[horizon:][moss] = c.colour(0.38, 0.52, 0.14)
    count = int(c.rng.integers(15, 21))
    bases = np.sort(c.rng.uniform(horizon + 8, SIZE + 8, count))
    columns = c.rng.integers(0, SIZE - 1, count)
    for base, column in zip(bases, columns, strict=True):
        near = (base - horizon) / (SIZE - horizon)
        tall = int((14 + 22 * near) * c.rng.uniform(0.8, 1.15))
        top, bottom = max(int(base) - tall, 0), min(int(base), SIZE)
        green = c.colour(0.46, 0.58, 0.16, 0.07) * (0.75 + 0.25 * near)
        depth = 90.0 / (base - horizon + 1)
        c.image[top:bottom, column] = green
        c.depth[top:bottom, column] = depth
        c.image[top : top + 6, column : column + 2] = (0.36, 0.19, 0.08)
        c.depth[top : top + 6, column : column + 2] = depth


def _trunk(
    c: Canvas,
    x: float,
    width: float,
    bottom: int,
    colour: np.ndarray,
    depth: float,
    texture: np.ndarray | None,
) -> None:
    left, right = max(int(round(x)), 0), min(int(round(x + width)), SIZE)
    if right <= left:
        return
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / width
    light = (1.12 - 0.75 * np.abs(across - 0.35) ** 1.2)[None]
    if texture is not None:
        light = light * (1 + 0.2 * texture[:bottom, left:right])
    c.image[:bottom, left:right] = light[..., None] * colour
    c.depth[:bottom, left:right] = depth


def forest(c: Canvas) -> None:
    """Brown trunks before dark foliage, a floor of leaves, a canopy above."""
    horizon = int(c.rng.integers(34, 40))
    c.ground_depth(horizon)
    c.image[:] = c.colour(0.10, 0.27, 0.10)
    c.depth[:horizon] = 18.0
    c.image[:] *= (1 + 0.38 * c.noise('leaf'))[..., None]
    c.fill(horizon, SIZE, c.colour(0.24, 0.23, 0.09), c.colour(0.40, 0.28, 0.13))
    c.shade(horizon, c.noise('patch', SIZE - horizon), 0.2)
    bark = c.noise('upright')
    slots = c.rng.permutation(8) * 8.6 - 3
    for k, slot in enumerate(slots):
        near = (k + 1) / len(slots)
        width = 2.2 + 5.2 * near**1.3 + c.rng.uniform(-0.4, 0.6)
        bottom = min(horizon + int(1 + 15 * near * near), SIZE)
        brown = c.colour(0.44, 0.28, 0.15, 0.04) * (0.62 + 0.38 * near)
        _trunk(c, slot + c.rng.uniform(0, 4), width, bottom, brown, 14.0 - 10.0 * near, bark)
    leaves = c.noise('leaf', 18)
    canopy = (YY[:18] + 3.5 * leaves) < c.rng.uniform(7, 11)
    shade = c.colour(0.17, 0.42, 0.13) * (1 + 0.25 * leaves[canopy])[:, None]
    c.image[:18][canopy] = shade
    c.depth[:18][canopy] = 5.0


def bamboo(c: Canvas) -> None:
    """Many thin, bright green stalks with rings, before a pale yellow-green haze."""
    horizon = int(c.rng.integers(40, 46))
    c.ground_depth(horizon)
    c.fill(0, horizon, c.colour(0.78, 0.88, 0.52), c.colour(0.62, 0.74, 0.34))
    c.depth[:horizon] = 16.0
    c.fill(horizon, SIZE, c.colour(0.62, 0.60, 0.30), c.colour(0.74, 0.66, 0.38))
    c.shade(horizon, c.noise('swell', SIZE - horizon), 0.10)
    slots = c.rng.permutation(13) * 5.0 - 1.0
    for k, slot in enumerate(slots):
        near = (k + 1) / len(slots)
        width = 2.0 + 1.9 * near
        x = slot + c.rng.uniform(0, 1.6)
        bottom = min(horizon + int(1 + 14 * near * near), SIZE)
        green = near * c.colour(0.36, 0.62, 0.14, 0.04) + (1 - near) * np.array(
            (0.58, 0.74, 0.30), np.float32
        )
        _trunk(c, x, width, bottom, green, 13.0 - 9.5 * near, None)
        gap = int(c.rng.integers(9, 13))
        rings = slice(int(c.rng.integers(0, gap)), bottom, gap)
        left, right = max(int(round(x)), 0), int(round(x + width))
        c.image[rings, left:right] = green * 0.45
        if near > 0.5:
            after = slice(rings.start + 1, bottom, gap)
            c.image[after, left:right] = np.minimum(green * 1.5, 0.95)


def desert(c: Canvas) -> None:
    """Orange dunes, lit on one side, with wind ripples; often a cactus."""
    horizon = int(c.rng.integers(26, 32))
    _sky(c, horizon)
    c.ground_depth(horizon)
    sand = c.colour(0.93, 0.70, 0.36)
    c.image[horizon:] = sand
    for k, (level, depth) in enumerate(((-4.0, 45.0), (5.0, 12.0), (16.0, 5.0))):
        wave = np.sin(XX[0] / c.rng.uniform(6, 11) + c.rng.uniform(0, 6.3))
        ridge = horizon + level + (2.2 + k) * wave + c.line()
        dune = YY >= ridge
        slope = np.gradient(ridge)[None]
        side = 0.84 + 0.09 * k + 0.34 * np.clip(slope, -0.5, 0.5)
        fade = np.clip(1 - (YY - ridge) / 14.0, 0, 1)
        light = np.where(dune, (1 - fade) * 0.97 + fade * side, 0)
        c.image[dune] = sand * light[dune][:, None]
        c.depth[dune] = np.minimum(depth, 90.0 / np.maximum(YY[dune] - horizon + 1, 2.0))
    rows = ROWS[horizon + 10 :, None]
    c.shade(horizon + 10, np.sin(rows * 2.1 + 2.0 * c.noise('cloud', SIZE - horizon - 10)), 0.05)
    if c.rng.random() < 0.8:
        x, foot = int(c.rng.integers(4, 56)), horizon + int(c.rng.integers(6, 14))
        tall, green = int(c.rng.integers(14, 20)), c.colour(0.20, 0.42, 0.16)
        for left, right, top, bottom in (
            (0, 4, tall, 0),
            (-4, 0, tall - 7, tall - 10),
            (-4, -2, tall - 3, tall - 8),
            (4, 8, tall - 5, tall - 8),
            (6, 8, tall - 1, tall - 6),
        ):
            box = (slice(foot - top, foot - bottom), slice(max(x + left, 0), max(x + right, 0)))
            c.image[box] = green
            c.depth[box] = 90.0 / (foot - horizon + 1)
        c.image[foot - tall : foot, x + 1 : x + 2] = green * 1.45


def meadow(c: Canvas) -> None:
    """Bright grass under a wide sky, full of red, yellow, white and violet flowers."""
    horizon = int(c.rng.integers(20, 26))
    _sky(c, horizon)
    c.ground_depth(horizon)
    c.fill(horizon, SIZE, c.colour(0.58, 0.80, 0.30), c.colour(0.25, 0.60, 0.12))
    _below(c, horizon - 2 - 1.5 * c.line(), c.colour(0.42, 0.68, 0.30), 58.0, horizon)
    c.shade(horizon, c.noise('upright', SIZE - horizon), 0.14)
    palette = np.array(
        ((0.93, 0.15, 0.15), (1.0, 0.87, 0.10), (0.97, 0.97, 0.97), (0.66, 0.24, 0.80)), np.float32
    )
    count = 46
    rows = (horizon + 2 + (SIZE - horizon - 4) * c.rng.random(count) ** 0.8).astype(int)
    columns = c.rng.integers(0, SIZE - 2, count)
    tints = palette[c.rng.integers(0, 4, count)]
    big = rows > horizon + 12
    c.image[rows, columns] = tints
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        c.image[np.minimum(rows[big] + dy, SIZE - 1), columns[big] + dx] = tints[big]


def snow_field(c: Canvas) -> None:
    """White ground with blue shadows and dark firs, snow on their boughs."""
    horizon = int(c.rng.integers(25, 32))
    _sky(c, horizon)
    if c.time == 'day':
        c.image[:horizon] = 0.45 * c.image[:horizon] + 0.55 * c.colour(0.80, 0.84, 0.90)
    c.ground_depth(horizon)
    c.fill(horizon, SIZE, c.colour(0.86, 0.90, 0.97, 0.02), c.colour(0.97, 0.98, 1.0, 0.01))
    drift = np.clip(c.noise('patch', SIZE - horizon) * 0.9, -1.4, 0.3)[..., None]
    c.image[horizon:] += drift * np.array((0.10, 0.07, 0.03), np.float32)
    for foot in np.sort(c.rng.uniform(horizon + 1, horizon + 15, int(c.rng.integers(4, 7)))):
        x, tall = c.rng.uniform(2, 62), 11 + 1.1 * (foot - horizon)
        above = foot - YY
        width = (1 - above / tall) * tall * 0.36 * (0.72 + 0.28 * ((above % 5) < 2.5))
        tree = (above > 0) & (np.abs(XX - x) < width)
        c.paint(tree, c.colour(0.10, 0.25, 0.18), 90.0 / (foot - horizon + 1))
        c.image[tree & ((above % 5) < 1.2)] = (0.92, 0.95, 0.99)


def city(c: Canvas) -> None:
    """Blocks with rows of windows along a grey street with a dashed line."""
    horizon = int(c.rng.integers(34, 40))
    _sky(c, horizon)
    c.ground_depth(horizon)
    lit = c.time == 'night'
    glass = np.array((3.0, 2.3, 0.9) if lit else (0.22, 0.30, 0.42), np.float32)
    palette = ((0.62, 0.60, 0.60), (0.70, 0.48, 0.38), (0.48, 0.54, 0.64), (0.78, 0.72, 0.60))
    left = -int(c.rng.integers(0, 8))
    while left < SIZE:
        right, top = left + int(c.rng.integers(11, 19)), int(c.rng.integers(2, 20))
        a, b = max(left, 0), min(right, SIZE)
        c.image[top:horizon, a:b] = c.colour(*palette[int(c.rng.integers(4))])
        c.depth[top:horizon, a:b] = 20.0
        for row in range(top + 2, horizon - 4, 5):
            for offset in (0, 1):
                c.image[row : row + 2, max(left + 2 + offset, 0) : max(b - 1, 0) : 4] = glass
                c.image[row + 1, max(left + 2 + offset, 0) : max(b - 1, 0) : 4] = glass * 0.8
        c.image[top:horizon, max(b - 1, 0) : b] *= 0.6
        left = right
    c.fill(horizon, SIZE, c.colour(0.36, 0.36, 0.38), c.colour(0.27, 0.27, 0.29))
    c.image[horizon : horizon + 3] = c.colour(0.66, 0.65, 0.63)
    row, start = horizon + 11 + int(c.rng.integers(0, 4)), int(c.rng.integers(0, 12))
    dash = (XX[0] + start) % 14 < 8
    c.image[row : row + 2, dash] = (0.92, 0.90, 0.82)
    c.shade(horizon, c.noise('grain', SIZE - horizon), 0.04)


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    'ocean': ocean,
    'lake': lake,
    'marsh': marsh,
    'forest': forest,
    'bamboo': bamboo,
    'desert': desert,
    'meadow': meadow,
    'snow field': snow_field,
    'city': city,
}
__all__ = ['FAR', 'PAINTERS']
