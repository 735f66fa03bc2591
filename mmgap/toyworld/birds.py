# SPDX-License-Identifier: Apache-2.0
"""Birds: two kinds that differ in shape only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgap.toyworld.canvas import SIZE, XX, YY

# Captions name only the two kinds.
SUBTYPES = {'landbird': ('songbird', 'wren', 'pigeon'), 'waterbird': ('heron', 'duck', 'stork')}


@dataclass(frozen=True)
class BirdShape:
    """Proportions of a bird in units of its body length.

    Attributes:
        girth: Body height.
        neck: Neck length.
        head: Head radius.
        beak: Beak length.
        legs: Leg length.
        tail: Tail length.
        tail_up: Tail angle above the horizontal, radians.
        tilt: Body angle, radians, breast up.
    """

    girth: float
    neck: float
    head: float
    beak: float
    legs: float
    tail: float
    tail_up: float
    tilt: float


# (low, high) of each proportion, drawn uniformly.
_RANGES = {
    'songbird': (
        (0.60, 0.72),
        (0.05, 0.12),
        (0.22, 0.26),
        (0.13, 0.20),
        (0.22, 0.32),
        (0.35, 0.50),
        (-0.3, 0.1),
        (0.25, 0.55),
    ),
    'wren': (
        (0.66, 0.78),
        (0.02, 0.10),
        (0.22, 0.26),
        (0.12, 0.18),
        (0.20, 0.30),
        (0.30, 0.42),
        (0.7, 1.1),
        (0.05, 0.3),
    ),
    'pigeon': (
        (0.55, 0.66),
        (0.10, 0.18),
        (0.17, 0.21),
        (0.10, 0.16),
        (0.18, 0.28),
        (0.40, 0.55),
        (-0.2, 0.1),
        (0.2, 0.45),
    ),
    'heron': (
        (0.40, 0.50),
        (0.62, 0.85),
        (0.13, 0.16),
        (0.36, 0.48),
        (0.50, 0.70),
        (0.12, 0.22),
        (-0.5, -0.1),
        (0.15, 0.4),
    ),
    'duck': (
        (0.42, 0.52),
        (0.38, 0.52),
        (0.16, 0.19),
        (0.26, 0.34),
        (0.12, 0.22),
        (0.14, 0.24),
        (0.2, 0.6),
        (-0.05, 0.1),
    ),
    'stork': (
        (0.44, 0.54),
        (0.48, 0.66),
        (0.14, 0.17),
        (0.40, 0.52),
        (0.62, 0.80),
        (0.14, 0.24),
        (-0.4, 0.0),
        (0.05, 0.25),
    ),
}


@dataclass(frozen=True)
class Bird:
    """A drawn bird.

    Attributes:
        mask: (64, 64) bool.
        image: (64, 64, 3) float32 RGB in [0, 1], daylight; valid where ``mask`` is set.
        feet: Row of the feet, where the bird meets the ground.
    """

    mask: np.ndarray
    image: np.ndarray
    feet: float


def draw_subtype(rng: np.random.Generator, kind: str) -> str:
    """Draws a sub-type of a kind; a sub-type is its own."""
    if kind not in SUBTYPES:
        return kind
    return SUBTYPES[kind][int(rng.integers(len(SUBTYPES[kind])))]


def draw_shape(rng: np.random.Generator, subtype: str) -> BirdShape:
    """Draws the proportions of one bird of a sub-type."""
    low, high = np.array(_RANGES[subtype]).T
    return BirdShape(*(float(v) for v in rng.uniform(low, high)))


def _hue(rng: np.random.Generator) -> np.ndarray:
    """A random colour: any hue, moderate saturation and brightness."""
    hue, sat, value = rng.random(), rng.uniform(0.15, 0.85), rng.uniform(0.35, 0.98)
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - sat + sat * wheel)).astype(np.float32)


def draw_bird(rng: np.random.Generator, kind: str) -> Bird:
    """Draws a bird of a kind ('landbird', 'waterbird') or sub-type; position, size, pose, colours
    derive from ``rng`` alone."""
    subtype = draw_subtype(rng, kind)
    shape = draw_shape(rng, subtype)
    # Squat birds are drawn a little longer, so that the area of a bird tells nothing.
    length = rng.uniform(16.0, 21.0) * (1.12 if subtype in SUBTYPES['landbird'] else 1.0)
    facing = 1.0 if rng.random() < 0.5 else -1.0
    feet = rng.uniform(50.0, 60.0)
    centre = rng.uniform(21.0, 43.0)
    colours = [_hue(rng) for _ in range(3)]
    return _compose(shape, length, facing, feet, centre, colours)


def _ellipse(
    px: np.ndarray, py: np.ndarray, cx: float, cy: float, a: float, b: float, angle: float
) -> np.ndarray:
    """Approximate signed distance (px, negative inside) to a tilted ellipse."""
    c, s = np.cos(angle), np.sin(angle)
    u, v = (px - cx) * (c / a) - (py - cy) * (s / a), (px - cx) * (s / b) + (py - cy) * (c / b)
    return (np.sqrt(u * u + v * v) - 1) * min(a, b)


def _limb(
    px: np.ndarray,
    py: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    thick: float,
    thin: float,
) -> np.ndarray:
    """Signed distance (px) to a stroke that tapers from radius ``thick`` to ``thin``."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((px - start[0]) * dx + (py - start[1]) * dy) / (dx * dx + dy * dy + 1e-6)
    np.clip(along, 0, 1, out=along)
    ox, oy = px - start[0] - along * dx, py - start[1] - along * dy
    return np.sqrt(ox * ox + oy * oy) - (thick + along * (thin - thick))


def _compose(
    shape: BirdShape,
    length: float,
    facing: float,
    feet: float,
    centre: float,
    colours: list[np.ndarray],
) -> Bird:
    # Local axes: x toward the beak, y down; mirrored by `facing`.
    a, b = length / 2, shape.girth * length / 2
    body_y = feet - shape.legs * length - b * 0.8
    left, right = max(int(centre - 1.5 * length), 0), min(int(centre + 1.5 * length), SIZE)
    top = max(int(body_y - 1.6 * length), 0)
    px = (XX[top:, left:right] - centre) * facing
    py = YY[top:, left:right] - body_y
    ct, st = np.cos(shape.tilt), np.sin(shape.tilt)

    def on_body(x: float, y: float) -> tuple[float, float]:  # body axes -> local axes
        return x * ct + y * st, -x * st + y * ct

    breast, rear = on_body(a * 0.72, -b * 0.3), on_body(-a * 0.85, 0.0)
    bend = (breast[0] + shape.neck * length * 0.28, breast[1] - shape.neck * length * 0.5)
    head = (
        breast[0] + shape.neck * length * 0.30 + shape.head * length * 0.4,
        breast[1] - shape.neck * length * 0.95 - shape.head * length * 0.45,
    )
    radius = shape.head * length
    beak_from = (head[0] + radius * 0.7, head[1] + radius * 0.1)
    beak_to = (beak_from[0] + shape.beak * length + 1.0, beak_from[1] + 0.6)
    tail_to = (
        rear[0] - shape.tail * length * np.cos(shape.tail_up),
        rear[1] - shape.tail * length * np.sin(shape.tail_up),
    )
    neck_width = max(0.085 * length, 1.15) if shape.neck > 0.25 else 0.2 * length

    body = _ellipse(px, py, 0.0, 0.0, a, b, shape.tilt)
    tail = _limb(px, py, rear, tail_to, 0.13 * length, 0.07 * length)
    neck = np.minimum(
        _limb(px, py, breast, bend, neck_width * 1.35, neck_width),
        _limb(px, py, bend, head, neck_width, neck_width),
    )
    skull = np.hypot(px - head[0], py - head[1]) - radius
    beak = _limb(px, py, beak_from, beak_to, 1.25, 0.45)
    hip = b * 0.55
    legs = np.minimum(
        _limb(px, py, (-1.6, hip), (-1.9, feet - body_y), 0.75, 0.7),
        _limb(px, py, (2.0, hip), (2.4, feet - body_y), 0.75, 0.7),
    )
    wing = _ellipse(px, py, *on_body(-a * 0.18, -b * 0.05), a * 0.60, b * 0.52, shape.tilt + 0.1)

    main, wing_colour, accent = colours
    trunk = np.minimum(np.minimum(body, tail), np.minimum(neck, skull))
    image = np.empty((*trunk.shape, 3), np.float32)
    image[:] = accent * 0.75
    inside = trunk < 0.3
    # Light from above, a dark rim: the outline is what tells the kinds apart.
    light = np.clip(1.0 - 0.22 * py / max(b, 1.0), 0.72, 1.15)[..., None]
    shaded = np.where((wing < 0)[..., None], wing_colour, main) * light
    rim = (trunk > -0.85) | (np.abs(wing) < 0.5)
    shaded[rim] *= 0.55
    image[inside] = shaded[inside]
    eye = np.hypot(px - head[0] - radius * 0.25, py - head[1] + radius * 0.15) < 0.75
    image[eye] = 0.04
    window = inside | (beak < 0.3) | (legs < 0.15)

    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:, left:right] = window
    full = np.zeros((SIZE, SIZE, 3), np.float32)
    full[top:, left:right] = image
    return Bird(mask, np.clip(full, 0, 1), feet)
