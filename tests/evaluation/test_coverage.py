# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from mmgap.evaluation import density_and_coverage


def by_hand(real, generated, k):
    """The definition, sample by sample."""
    balls = []
    for i, centre in enumerate(real):
        others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(real) if j != i)
        balls.append((centre, others[k - 1]))
    hits = [[np.linalg.norm(c - one) < radius for one in generated] for c, radius in balls]
    density = sum(map(sum, hits)) / (k * len(generated))
    return density, np.mean([any(row) for row in hits])


@pytest.mark.parametrize('k', [1, 3])
def test_is_its_definition(k):
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(12, 3)), rng.normal(0.5, 1, size=(7, 3))
    found = density_and_coverage(torch.from_numpy(real), torch.from_numpy(generated), k)
    assert found == pytest.approx(by_hand(real, generated, k), abs=1e-6)


def test_the_same_distribution_another_and_one_mode():
    rng = np.random.default_rng(1)
    real, same = (torch.from_numpy(rng.normal(size=(400, 4))) for _ in range(2))
    density, coverage = density_and_coverage(real, same)
    assert density == pytest.approx(1, abs=0.15) and coverage > 0.9
    assert density_and_coverage(real, same + 100) == (0, 0)
    density, coverage = density_and_coverage(real, same * 0.1)  # all in the middle
    assert density > 1 and coverage < 0.2
    with pytest.raises(ValueError, match='more than k=5 real samples and one generated, got 5'):
        density_and_coverage(real[:5], same)
