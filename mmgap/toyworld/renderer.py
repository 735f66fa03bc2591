# SPDX-License-Identifier: Apache-2.0
"""Draws scenes of the toy world: picture, foreground mask and metric depth.

Everything derives from the :class:`Scene` by integer-seeded generators; nothing is stored.
Freezing: any change of a pixel needs a new ``WORLD_VERSION`` (results carry it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgap.toyworld.backdrops import paint_backdrop
from mmgap.toyworld.birds import SUBTYPES, Bird, draw_bird, draw_subtype
from mmgap.toyworld.canvas import FAR, SIZE, XX, YY, Canvas, rain_table
from mmgap.toyworld.places import PAINTERS
from mmgap.toyworld.vocabulary import Scene, caption

WORLD_VERSION = 1

_TINT = {'day': (1.0, 1.0, 1.0), 'dusk': (1.02, 0.66, 0.50), 'night': (0.34, 0.42, 0.66)}
# Birds are dimmed less than their surroundings, so that their shape can still be read.
_BIRD_TINT = {'day': (1.0, 1.0, 1.0), 'dusk': (1.0, 0.82, 0.70), 'night': (0.52, 0.57, 0.74)}
_FOG = {'day': (0.80, 0.82, 0.84), 'dusk': (0.80, 0.66, 0.60), 'night': (0.27, 0.30, 0.40)}
_RAIN = {'day': (0.88, 0.92, 0.98), 'dusk': (0.95, 0.82, 0.76), 'night': (0.50, 0.56, 0.72)}


@dataclass(frozen=True)
class Rendering:
    """A drawn scene.

    Attributes:
        image: (64, 64, 3) uint8, RGB.
        mask: (64, 64) uint8, 255 on the bird, else 0; exact, without soft edges.
        depth: (64, 64) float32, metres, at most 100 (the sky).
    """

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


def render(scene: Scene, subtype: str | None = None) -> Rendering:
    """Draws a scene.

    Args:
        scene: What to draw.
        subtype: A sub-type of the scene's bird (see ``birds.SUBTYPES``); None draws one at
            random. Only the pretraining of the backbone asks for one.

    Returns:
        The picture, its mask and its depth.
    """
    subtypes = SUBTYPES.get(scene.bird or '', ())
    if subtype is not None and subtype not in subtypes:
        raise ValueError(
            f'subtype={subtype!r} is no sub-type of bird={scene.bird!r}; use one of {subtypes}'
        )
    # Independent streams: the bird is the same in every place.
    behind, front = (np.random.default_rng([WORLD_VERSION, scene.seed, k]) for k in (0, 1))
    canvas = Canvas(behind, scene.time)
    if scene.is_backdrop:
        paint_backdrop(canvas, scene.place)
    else:
        PAINTERS[scene.place](canvas)
    image, depth = canvas.image, canvas.depth
    gain = np.float32(behind.uniform(0.92, 1.06))
    lit = depth < FAR
    image[lit] *= np.array(_TINT[scene.time], np.float32) * gain
    if scene.is_backdrop and scene.time == 'night':
        image *= 1.12
    mask = np.zeros((SIZE, SIZE), bool)
    if scene.bird is not None:
        bird = draw_bird(front, subtype or scene.bird)
        _place_bird(image, depth, bird, canvas.horizon, scene.time)
        mask = bird.mask
    _weather(image, depth, mask, scene, behind)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Rendering(pixels, mask.astype(np.uint8) * 255, depth)


def subtype_of(scene: Scene) -> str | None:
    """The sub-type of a scene's bird where none is asked for; None without a bird."""
    if scene.bird is None:
        return None
    return draw_subtype(np.random.default_rng([WORLD_VERSION, scene.seed, 1]), scene.bird)


def _place_bird(image: np.ndarray, depth: np.ndarray, bird: Bird, horizon: int, time: str) -> None:
    """Composites a bird and its small shadow in place; hard edges keep the mask exact."""
    columns = np.flatnonzero(bird.mask.any(0))
    if len(columns) == 0:
        return
    centre, reach = columns.mean(), 0.3 * (columns[-1] - columns[0])
    shadow = ((XX - centre) / max(reach, 1.0)) ** 2 + ((YY - bird.feet) / 1.8) ** 2 < 1
    image[shadow] *= 0.72
    image[bird.mask] = bird.image[bird.mask] * np.array(_BIRD_TINT[time], np.float32)
    depth[bird.mask] = 90.0 / (bird.feet - horizon + 1.0) if bird.feet > horizon else 3.0


def _weather(
    image: np.ndarray, depth: np.ndarray, mask: np.ndarray, scene: Scene, rng: np.random.Generator
) -> None:
    if scene.weather == 'fog':
        density = rng.uniform(0.09, 0.13)
        haze = 0.30 + 0.40 * (1 - np.exp(-density * depth))
        haze[mask] = 0.30
        image += haze[..., None] * (np.array(_FOG[scene.time], np.float32) - image)
    elif scene.weather == 'rain':
        grey = image.mean(-1, keepdims=True)
        image += 0.35 * (grey - image)
        image *= 0.86
        top, left = rng.integers(0, 129, 2)
        streaks = rain_table()[top : top + SIZE, left : left + SIZE, None] * 0.6
        image += streaks * (np.array(_RAIN[scene.time], np.float32) - image)


__all__ = ['WORLD_VERSION', 'Rendering', 'Scene', 'caption', 'render', 'subtype_of']
