# SPDX-License-Identifier: Apache-2.0
"""Errors of depth maps against independent formulations, their gradients, and the corner cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmgap.compat import allow_mmcv_without_ops
from mmgap.feedback import masked_l1, scale_shift_invariant_mae, silog

LOSSES = {
    'l1': masked_l1,
    'silog': silog,
    'ssi': scale_shift_invariant_mae,
    'ssi with edges': lambda p, d: scale_shift_invariant_mae(p, d, gradient_weight=0.5, scales=2),
}


@pytest.fixture
def maps():
    rng = torch.Generator().manual_seed(3)
    prediction, depth = (
        0.5 + 9 * torch.rand(3, 1, 7, 6, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    depth[torch.rand(depth.shape, generator=rng) < 0.3] = 0
    return prediction, depth


def in_numpy(prediction, depth):
    """The three losses of one map, pixel by pixel from the papers' words."""
    known = depth > 0
    p, d = prediction[known], depth[known]

    def aligned(v):
        median = np.sort(v)[(len(v) - 1) // 2]  # torch takes the lower of two middle values
        return (v - median) / np.abs(v - median).mean()

    log = np.log(d) - np.log(p)
    error = np.zeros(depth.shape)
    error[known] = aligned(p) - aligned(d)
    edges = 0.0
    for k in (1, 2):
        part, there = error[::k, ::k], known[::k, ::k]
        for y in range(part.shape[0]):
            for x in range(part.shape[1]):
                for v, u in ((y + 1, x), (y, x + 1)):
                    inside = v < part.shape[0] and u < part.shape[1]
                    if inside and there[y, x] and there[v, u]:
                        edges += abs(part[v, u] - part[y, x]) / there.sum()
    ssi = 0.5 * np.abs(error[known]).mean()
    return dict(
        l1=np.abs(p - d).mean(),
        silog=np.sqrt((log**2).mean() - 0.5 * log.mean() ** 2),
        ssi=ssi,
        **{'ssi with edges': ssi + 0.5 * edges},
    )


@pytest.mark.parametrize('name', LOSSES)
def test_equals_an_independent_formulation(name, maps):
    expected = [in_numpy(p[0].numpy(), d[0].numpy())[name] for p, d in zip(*maps, strict=True)]
    assert LOSSES[name](*maps).tolist() == pytest.approx(expected, rel=1e-12)


def test_silog_equals_upstream(maps):
    allow_mmcv_without_ops()
    from mmseg.models.losses.silog_loss import silog_loss

    upstream = silog_loss(*maps, eps=1e-6, reduction='none')
    assert torch.allclose(silog(*maps), upstream, rtol=1e-9)


@pytest.mark.parametrize('name', LOSSES)
def test_gradient(name, maps):
    prediction, depth = maps
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: LOSSES[name](p, depth), (prediction,))


@pytest.mark.parametrize('name', LOSSES)
def test_no_nan_where_exact_flat_or_unknown(name, maps):
    _, depth = maps
    flat, unknown = torch.full_like(depth, 2.0), torch.zeros_like(depth)
    exact = torch.where(depth > 0, depth, torch.ones_like(depth))
    for prediction, truth in ((exact, depth), (flat, depth), (exact, flat), (flat, unknown)):
        prediction = prediction.clone().requires_grad_()
        loss = LOSSES[name](prediction, truth)
        (gradient,) = torch.autograd.grad(loss.sum(), prediction)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert LOSSES[name](exact, depth).abs().max() < 1e-5
    assert LOSSES[name](flat, unknown).abs().max() < 1e-5


def test_scale_and_shift_cost_nothing(maps):
    prediction, depth = maps
    for loss in ('ssi', 'ssi with edges'):
        moved = LOSSES[loss](0.3 * prediction + 2, depth)
        assert torch.allclose(moved, LOSSES[loss](prediction, depth), rtol=1e-9)


def test_unknown_pixels_do_not_count(maps):
    prediction, depth = maps
    elsewhere = torch.where(depth > 0, prediction, 100 * prediction)
    for loss in LOSSES.values():
        assert torch.equal(loss(prediction, depth), loss(elsewhere, depth))


def test_bad_input(maps):
    prediction, depth = maps
    with pytest.raises(ValueError, match=r'prediction is \(3, 1, 7, 6\) and depth \(3, 1, 6, 6\)'):
        masked_l1(prediction, depth[:, :, 1:])
    with pytest.raises(ValueError, match='scales must be at least 1, got 0'):
        scale_shift_invariant_mae(prediction, depth, scales=0)
