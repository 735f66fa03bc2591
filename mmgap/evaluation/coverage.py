# SPDX-License-Identifier: Apache-2.0
"""How much of real images generated ones cover, and how densely."""

from __future__ import annotations

import torch
from torch import Tensor


def density_and_coverage(real: Tensor, generated: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of generated samples (arXiv 2002.09797, equations 4 and 6).

    Each real sample has a ball that just reaches its k-th nearest real neighbour.

    Args:
        real: ``(N, width)`` features, more than ``k``.
        generated: ``(M, width)`` features.
        k: Number of neighbours.

    Returns:
        The balls that a generated sample lies in, in the mean and over ``k``: about 1 where both
        are of one distribution, and not bounded. And the share of balls that have one, in [0, 1].

    Raises:
        ValueError: If there are too few samples.
    """
    if len(real) <= k or len(generated) == 0:
        raise ValueError(
            f'coverage needs more than k={k} real samples and one generated, got {len(real)} and '
            f'{len(generated)}'
        )
    # The nearest is the sample itself.
    radii = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    inside = torch.cdist(real, generated) < radii[:, None]
    density = inside.sum().item() / (k * len(generated))
    return density, inside.any(dim=1).float().mean().item()
