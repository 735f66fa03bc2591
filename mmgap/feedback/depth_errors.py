# SPDX-License-Identifier: Apache-2.0
"""Errors of depth maps: one value per sample, metres in, 0 in the truth means unknown."""

from __future__ import annotations

import torch
from torch import Tensor

# Below it a spread counts as none: a prediction without any relief has nothing to be scaled by.
_LEAST_SPREAD = 1e-6


def masked_l1(prediction: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error over the pixels whose depth is known.

    Args:
        prediction: ``(B, 1, H, W)`` in metres.
        depth: ``(B, 1, H, W)`` in metres, 0 where unknown.

    Returns:
        ``(B,)`` in metres; 0 for a map without known pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    known = _known(prediction, depth)
    return _mean((prediction - depth).abs(), known)


def silog(prediction: Tensor, depth: Tensor, focus: float = 0.5, eps: float = 1e-12) -> Tensor:
    r"""Scale-invariant logarithmic error (Eigen et al., arXiv 1406.2283, equation 4, its root).

    :math:`\sqrt{\overline{d^2} - \lambda \bar{d}^2}` with :math:`d = \log z - \log \hat z`.

    Args:
        prediction: ``(B, 1, H, W)`` in metres, positive.
        depth: ``(B, 1, H, W)`` in metres, 0 where unknown.
        focus: :math:`\lambda`; at 1 a wrong scale costs nothing.
        eps: Least value under the root. MMSegmentation's ``SiLogLoss`` has none and its gradient is
            NaN where a prediction is exact; elsewhere both are equal.

    Returns:
        ``(B,)``, without unit; about 0 for a map without known pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    known = _known(prediction, depth)
    # The logarithm of an unknown 0 would make the masked gradient NaN.
    truth = torch.where(known, depth, torch.ones_like(depth))
    ratio = truth.log() - prediction.clamp(min=1e-6).log()
    square = _mean(ratio.square(), known) - focus * _mean(ratio, known).square()
    return square.clamp(min=eps).sqrt()


def scale_shift_invariant_mae(
    prediction: Tensor, depth: Tensor, gradient_weight: float = 0.0, scales: int = 4
) -> Tensor:
    """MiDaS' robust loss (Ranftl et al., arXiv 1907.01341, equations 5 to 7 and 11).

    Both maps lose their median and are divided by their mean absolute deviation from it; the loss
    is half the mean absolute difference.

    Args:
        prediction: ``(B, 1, H, W)``, in any unit.
        depth: ``(B, 1, H, W)``, 0 where unknown.
        gradient_weight: Factor of the gradient term, which asks for edges in the same places:
            the mean absolute difference of neighbours of the error, summed over scales.
        scales: How many scales the gradient term looks at, each with half the pixels of the one
            before along each side.

    Returns:
        ``(B,)``, without unit; 0 for a map without known pixels.

    Raises:
        ValueError: If the shapes differ, or ``scales`` is less than 1.
    """
    if scales < 1:
        raise ValueError(f'scales must be at least 1, got {scales}')
    known = _known(prediction, depth)
    error = _aligned(prediction, known) - _aligned(depth, known)
    loss = 0.5 * _mean(error.abs(), known)
    if gradient_weight:
        loss = loss + gradient_weight * _gradient_term(error, known, scales)
    return loss


def _known(prediction: Tensor, depth: Tensor) -> Tensor:
    if prediction.shape != depth.shape or depth.ndim != 4:
        raise ValueError(
            f'prediction is {tuple(prediction.shape)} and depth {tuple(depth.shape)}; both must be '
            'one (B, 1, H, W)'
        )
    return depth > 0


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """``(B,)``: mean over the known pixels, 0 where there are none."""
    total = torch.where(known, values, torch.zeros_like(values)).flatten(1).sum(dim=1)
    return total / known.flatten(1).sum(dim=1).clamp(min=1)


def _aligned(values: Tensor, known: Tensor) -> Tensor:
    """Median 0 and mean absolute deviation 1 over the known pixels of each map."""
    medians = [
        v[k].median() if k.any() else v.new_zeros(()) for v, k in zip(values, known, strict=True)
    ]
    centred = values - torch.stack(medians).view(-1, 1, 1, 1)
    spread = _mean(centred.abs(), known).clamp(min=_LEAST_SPREAD)
    return centred / spread.view(-1, 1, 1, 1)


def _gradient_term(error: Tensor, known: Tensor, scales: int) -> Tensor:
    total = error.new_zeros(len(error))
    for scale in range(scales):
        part, there = error[..., :: 2**scale, :: 2**scale], known[..., :: 2**scale, :: 2**scale]
        for axis in (2, 3):
            if part.shape[axis] < 2:
                continue
            length = part.shape[axis] - 1
            step = part.narrow(axis, 1, length) - part.narrow(axis, 0, length)
            both = there.narrow(axis, 1, length) & there.narrow(axis, 0, length)
            # By the number of pixels, not of pairs: as in the paper's equation.
            pixels = there.flatten(1).sum(dim=1).clamp(min=1)
            total = total + torch.where(both, step.abs(), 0).flatten(1).sum(dim=1) / pixels
    return total
