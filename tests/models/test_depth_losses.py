# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from mmgap.models import MaskedL1Loss, RobustSiLogLoss, ScaleShiftInvariantLoss


@pytest.mark.parametrize('kind', [MaskedL1Loss, RobustSiLogLoss, ScaleShiftInvariantLoss])
def test_mean_over_maps_with_known_pixels(kind):
    rng = torch.Generator().manual_seed(3)
    prediction, depth = (0.5 + 9 * torch.rand(4, 1, 7, 6, generator=rng) for _ in range(2))
    depth[3] = 0
    module = kind(loss_weight=2.0)
    expected = 2 * module.per_sample(prediction[:3], depth[:3]).mean()
    assert float(module(prediction, depth)) == pytest.approx(float(expected))
    assert float(module(prediction[3:], depth[3:])) == 0


def test_names():
    assert MaskedL1Loss().loss_name == 'loss_l1'
    with pytest.raises(ValueError, match="loss_name must begin with 'loss_', got 'l1'"):
        MaskedL1Loss(loss_name='l1')
