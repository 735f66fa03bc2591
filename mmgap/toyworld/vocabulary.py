# SPDX-License-Identifier: Apache-2.0
"""What can be said about the toy world: its words, its scenes and their captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BIRDS = ('landbird', 'waterbird')
PLACES = ('ocean', 'lake', 'marsh', 'forest', 'bamboo', 'desert', 'meadow', 'snow field', 'city')
LAND_PLACES = ('forest', 'bamboo')
WATER_PLACES = ('ocean', 'lake')
TIMES = ('day', 'dusk', 'night')
WEATHERS = ('clear', 'fog', 'rain')

COLOURS = (
    'red',
    'orange',
    'yellow',
    'green',
    'teal',
    'blue',
    'purple',
    'pink',
    'brown',
    'black',
    'white',
    'grey',
)
PATTERNS = (
    'striped curtain',
    'brick wall',
    'checkerboard',
    'dotted wallpaper',
    'zigzag carpet',
    'wooden fence',
    'tiled floor',
    'plaid blanket',
    'ringed mural',
    'diamond quilt',
    'stone mosaic',
    'scaly roof',
)
BACKDROPS = tuple(f'{colour} {pattern}' for pattern in PATTERNS for colour in COLOURS)

# How a place is put into a sentence: the usual phrase first, then other ways to say it.
PLACE_PHRASES = {
    'ocean': ('on the ocean', 'at the ocean', 'on ocean waves', 'on the sea'),
    'lake': ('on a lake', 'at a lake', 'by a mountain lake'),
    'marsh': ('in a marsh', 'in a marsh with reeds', 'in a swamp'),
    'forest': ('in a forest', 'in the forest', 'among forest trees', 'in the woods'),
    'bamboo': ('in bamboo', 'in a bamboo forest', 'among bamboo'),
    'desert': ('in a desert', 'in the desert', 'on desert sand'),
    'meadow': ('in a meadow', 'on a meadow with flowers', 'in a grass meadow'),
    'snow field': ('in a snow field', 'on snow', 'in the snow'),
    'city': ('in a city', 'in the city', 'on a city street'),
}
# Words for several places at once; a caption uses them now and then.
BROAD_PHRASES = {
    'ocean': ('on the water', 'on water'),
    'lake': ('on the water', 'on water'),
    'forest': ('on land', 'among trees'),
    'bamboo': ('on land', 'among green plants'),
    'desert': ('on land',),
    'meadow': ('on land', 'on grass'),
    'city': ('on land',),
    'marsh': ('in a wetland',),
    'snow field': ('on land',),
}
TIME_PHRASES = {
    'day': ('by day', 'at day', 'in daylight'),
    'dusk': ('at dusk', 'at sunset'),
    'night': ('at night', 'in the dark'),
}
WEATHER_PHRASES = {
    'clear': ('in clear weather', 'under a clear sky'),
    'fog': ('in fog', 'in foggy weather', 'in mist'),
    'rain': ('in rain', 'in rainy weather', 'in the rain'),
}
_OPENERS = ('', '', '', '', 'a photo of ', 'a picture of ', 'an image of ')


@dataclass(frozen=True)
class Scene:
    """One picture of the toy world, before it is drawn.

    Args:
        bird: 'landbird', 'waterbird' or None.
        place: One of ``PLACES`` or of ``BACKDROPS``.
        time: One of ``TIMES``.
        weather: One of ``WEATHERS``.
        seed: Non-negative int; everything left open above derives from it. The bird depends on
            ``seed`` and ``bird`` alone, so scenes that differ in place show the same bird.
    """

    bird: str | None
    place: str
    time: str = 'day'
    weather: str = 'clear'
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ('bird', self.bird, (None, *BIRDS)),
            ('time', self.time, TIMES),
            ('weather', self.weather, WEATHERS),
        ):
            if value not in known:
                raise ValueError(f'{name}={value!r} is unknown; use one of {known}')
        if self.place not in PLACES and self.place not in _BACKDROP_SET:
            raise ValueError(
                f'place={self.place!r} is neither one of {PLACES} nor a backdrop such '
                f'as {BACKDROPS[0]!r}'
            )
        if self.seed < 0:
            raise ValueError(f'seed={self.seed} must not be negative')

    @property
    def is_backdrop(self) -> bool:
        return self.place not in PLACES


_BACKDROP_SET = frozenset(BACKDROPS)


def _article(name: str) -> str:
    return 'an' if name[0] in 'aeiou' else 'a'


def _place_noun(place: str) -> str:
    return 'bamboo' if place == 'bamboo' else f'{_article(place)} {place}'


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Describes a scene in words.

    Args:
        scene: The scene.
        rng: None for the one plain caption; a generator for varied captions: other phrases and
            orders, commas, attributes left out, single words.

    Returns:
        Lower-case words and commas separated by single spaces or ``', '``.
    """
    if rng is not None:
        return _varied_caption(scene, rng)
    if scene.is_backdrop:
        noun = f'{_article(scene.place)} {scene.place}'
        text = f'a {scene.bird} in front of {noun}' if scene.bird else noun
    else:
        text = (
            f'a {scene.bird} {PLACE_PHRASES[scene.place][0]}'
            if scene.bird
            else _place_noun(scene.place)
        )
    if scene.time != 'day':
        text += f' {TIME_PHRASES[scene.time][0]}'
    if scene.weather != 'clear':
        text += f' {WEATHER_PHRASES[scene.weather][0]}'
    return text


def _pick(rng: np.random.Generator, options: tuple[str, ...], first: float = 0.5) -> str:
    """Draws the first option with probability ``first``, else any."""
    if len(options) == 1 or rng.random() < first:
        return options[0]
    return options[int(rng.integers(len(options)))]


def _varied_caption(scene: Scene, rng: np.random.Generator) -> str:
    kind = rng.random()
    bird = scene.bird if scene.bird and rng.random() > 0.12 else None
    attributes = []
    if rng.random() < (0.92 if scene.time != 'day' else 0.3):
        attributes.append(_pick(rng, TIME_PHRASES[scene.time]))
    if rng.random() < (0.92 if scene.weather != 'clear' else 0.2):
        attributes.append(_pick(rng, WEATHER_PHRASES[scene.weather]))
    if rng.random() < 0.4:
        attributes.reverse()
    if kind < 0.06:  # a single word or two: what the scene is, and nothing else
        return scene.place if rng.random() < 0.7 or not scene.bird else scene.bird
    if kind < 0.14:  # tags
        tags = [
            scene.place,
            *([bird] if bird else []),
            *[w for w in (scene.time, scene.weather) if rng.random() < 0.9],
        ]
        return ', '.join(tags[i] for i in rng.permutation(len(tags)))
    if scene.is_backdrop:
        noun = f'{_article(scene.place)} {scene.place}'
        where = f'in front of {noun}'
    else:
        noun = _place_noun(scene.place)
        where = _pick(rng, PLACE_PHRASES[scene.place], 0.6)
        if rng.random() < 0.07:
            where = _pick(rng, BROAD_PHRASES[scene.place])
    named = f'{"a bird" if rng.random() < 0.1 else "a " + bird} {where}' if bird else noun
    text = named
    joiner = ', ' if rng.random() < 0.3 else ' '
    if attributes and rng.random() < 0.15:  # attributes first
        return joiner.join(attributes) + ', ' + named
    for attribute in attributes:
        text += joiner + attribute
    return _OPENERS[int(rng.integers(len(_OPENERS)))] + text


def words() -> list[str]:
    """All words of the world in a fixed order, the comma first."""
    texts = [
        *BIRDS,
        'bird',
        *PLACES,
        *TIMES,
        *WEATHERS,
        *COLOURS,
        *PATTERNS,
        'a an the in front of on at by with photo picture image',
    ]
    for phrases in (PLACE_PHRASES, BROAD_PHRASES, TIME_PHRASES, WEATHER_PHRASES):
        texts += [phrase for options in phrases.values() for phrase in options]
    return list(dict.fromkeys([',', *' '.join(texts).split()]))
