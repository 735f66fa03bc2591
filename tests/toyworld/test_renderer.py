# SPDX-License-Identifier: Apache-2.0
"""The drawn world: deterministic, exact masks, metric depth, and what words say about it."""

import time

import numpy as np
import pytest

from mmgap.toyworld import Scene, caption, render
from mmgap.toyworld.birds import SUBTYPES
from mmgap.toyworld.canvas import FAR
from mmgap.toyworld.vocabulary import BACKDROPS, BIRDS, PLACES, TIMES, WEATHERS, words


def difference(first: Scene, second: Scene) -> float:
    return float(np.abs(render(first).image.astype(int) - render(second).image).mean())


@pytest.mark.parametrize('place', [*PLACES, *BACKDROPS[::11]])
def test_shapes_and_determinism(place):
    scene = Scene('waterbird', place, 'dusk', 'rain', 5)
    one, two = render(scene), render(scene)
    assert one.image.shape == (64, 64, 3) and one.image.dtype == np.uint8
    assert one.mask.shape == (64, 64) and set(np.unique(one.mask)) == {0, 255}
    assert one.depth.shape == (64, 64) and one.depth.dtype == np.float32
    assert one.depth.min() > 0.5 and one.depth.max() <= FAR
    for a, b in zip(
        (one.image, one.mask, one.depth), (two.image, two.mask, two.depth), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mask_is_exactly_the_bird():
    for seed in range(20):
        with_bird = render(Scene('landbird', 'forest', seed=seed))
        without = render(Scene(None, 'forest', seed=seed))
        assert not without.mask.any()
        changed = (with_bird.image != without.image).any(-1)
        outside = changed & (with_bird.mask == 0)
        # Outside the mask only the small shadow at the feet may differ.
        assert outside.sum() < 90
        assert (changed | (with_bird.mask == 0)).mean() > 0.995
        assert 90 < (with_bird.mask > 0).sum() < 900


def test_same_bird_in_every_place():
    scenes = [Scene('waterbird', place, seed=9) for place in ('ocean', 'bamboo', BACKDROPS[3])]
    first, *rest = [render(s) for s in scenes]
    for other in rest:
        np.testing.assert_array_equal(first.mask, other.mask)
        np.testing.assert_array_equal(first.image[first.mask > 0], other.image[first.mask > 0])


def test_kinds_differ_in_shape():
    heights = {
        bird: np.mean(
            [
                np.ptp(np.flatnonzero(render(Scene(bird, 'ocean', seed=s)).mask.any(1)))
                for s in range(60)
            ]
        )
        for bird in BIRDS
    }
    assert heights['waterbird'] > heights['landbird'] + 3


def test_bird_depth_meets_the_ground():
    for seed in range(10):
        drawn = render(Scene('landbird', 'meadow', seed=seed))
        bird = drawn.depth[drawn.mask > 0]
        assert np.ptp(bird) == 0 and 1.5 < bird[0] < 5.0
        assert drawn.depth[0, 0] == FAR and (np.diff(drawn.depth[40:, 0]) <= 0).all()


def test_night_is_darker_and_fog_is_paler():
    for place in (*PLACES, BACKDROPS[0]):
        by = {
            (t, w): np.mean([render(Scene(None, place, t, w, s)).image for s in range(5)])
            for t in TIMES
            for w in WEATHERS
        }
        assert 12 < by['night', 'clear'] < 0.7 * by['day', 'clear']
        contrast = [
            np.mean([render(Scene(None, place, 'day', w, s)).image.std() for s in range(5)])
            for w in ('clear', 'fog')
        ]
        assert contrast[1] < 0.8 * contrast[0]


def test_places_differ():
    for k, place in enumerate(PLACES):
        for other in PLACES[k + 1 :]:
            assert difference(Scene(None, place, seed=1), Scene(None, other, seed=1)) > 15


def test_caption():
    assert caption(Scene('landbird', 'forest', 'night', 'fog')) == (
        'a landbird in a forest at night in fog'
    )
    assert caption(Scene('waterbird', 'red striped curtain')) == (
        'a waterbird in front of a red striped curtain'
    )
    assert caption(Scene(None, 'lake', 'dusk', 'rain')) == 'a lake at dusk in rain'
    assert caption(Scene(None, 'orange brick wall')) == 'an orange brick wall'


def test_captions_use_the_vocabulary_alone():
    known, rng = set(words()), np.random.default_rng(0)
    seen = set()
    for k in range(6000):
        scene = Scene(
            (None, *BIRDS)[k % 3],
            (PLACES * 10 + BACKDROPS)[int(rng.integers(234))],
            TIMES[int(rng.integers(3))],
            WEATHERS[int(rng.integers(3))],
            k,
        )
        for text in (caption(scene), caption(scene, rng)):
            used = text.replace(',', ' ,').split()
            assert used and set(used) <= known and len(used) <= 28, text
            seen.update(used)
    assert seen == known


@pytest.mark.parametrize(
    'arguments',
    [
        {'bird': 'penguin', 'place': 'ocean'},
        {'bird': None, 'place': 'moon'},
        {'bird': None, 'place': 'city', 'time': 'noon'},
        {'bird': None, 'place': 'city', 'seed': -1},
        {'bird': None, 'place': 'city', 'weather': 'hail'},
    ],
)
def test_bad_scenes(arguments):
    with pytest.raises(ValueError, match='='):
        Scene(**arguments)


def test_bad_subtype():
    with pytest.raises(ValueError, match='subtype='):
        render(Scene('landbird', 'city'), SUBTYPES['waterbird'][0])


def test_speed():
    render(Scene('landbird', 'city'))
    start = time.process_time()
    for seed in range(60):
        render(Scene('landbird', PLACES[seed % 9], 'night', 'fog', seed))
    assert (time.process_time() - start) / 60 < 0.02  # 2 ms on an idle machine
