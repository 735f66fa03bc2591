# SPDX-License-Identifier: Apache-2.0
"""The probe on features whose separability is known."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest

from mmgap.injection import separability


def kinds(distance: float, first: int, second: int, dimensions: int = 20, seed: int = 0):
    """Two normal distributions that are apart in one dimension."""
    rng = np.random.default_rng(seed)
    features = [rng.normal(size=(count, dimensions)) for count in (first, second)]
    features[1][:, 3] += distance
    return [kind.astype(np.float32) for kind in features]


def spread(samples: int) -> float:
    """Four standard deviations of an accuracy that is a guess."""
    return 4 * sqrt(0.25 / samples)


@pytest.mark.parametrize('first, second', [(300, 300), (1500, 150)])
def test_what_is_the_same_is_guessed(first, second):
    """Also if one kind has ten times as many: to say always the same would be right in 91 %."""
    found = [separability(*kinds(0, first, second, seed=seed), seed=seed) for seed in range(3)]
    assert np.mean(found) == pytest.approx(0.5, abs=spread(3 * 2 * min(first, second)))


def test_it_is_tried_on_others_than_it_is_fitted_to():
    """With more dimensions than samples any halves can be told apart by heart."""
    found = [separability(*kinds(0, 60, 60, 400, seed), seed=seed) for seed in range(4)]
    assert np.mean(found) == pytest.approx(0.5, abs=spread(4 * 120))


@pytest.mark.parametrize('distance', [1.0, 2.0, 3.0])
def test_as_good_as_the_best_rule(distance):
    best = (1 + erf(distance / 2 / sqrt(2))) / 2
    assert separability(*kinds(distance, 1500, 1500)) == pytest.approx(best, abs=0.03)


def test_units_of_features_do_not_matter():
    first, second = kinds(2.0, 400, 400)
    units = np.logspace(-2, 3, 20).astype(np.float32)
    assert separability(first * units + 7, second * units + 7) == pytest.approx(
        separability(first, second), abs=0.01
    )


@pytest.mark.parametrize('first, second', [(50, 50), (7, 400), (2, 2)])
def test_far_apart(first, second):
    found = kinds(0, first, second)
    found[1] += 50
    assert separability(*found) == separability(*found[::-1]) == 1.0


def test_equal_seeds_are_equal_halves():
    found = kinds(1.0, 80, 90)
    values = [separability(*found, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert values[0] == values[1] and len(set(values)) > 1


@pytest.mark.parametrize('first, second', [(1, 9), (9, 1), (0, 0)])
def test_too_few(first, second):
    with pytest.raises(ValueError, match=f'needs two samples of each kind, got {first}, {second}'):
        separability(*kinds(1.0, first, second))
