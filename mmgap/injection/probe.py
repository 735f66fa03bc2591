# SPDX-License-Identifier: Apache-2.0
"""Whether a model tells generated images from real ones."""

from __future__ import annotations

import numpy as np

from mmgap.seeds import derive_rng

# Added to the diagonal of the mean products of standardised features.
RIDGE = 0.1


def separability(first: np.ndarray, second: np.ndarray, seed: int = 0) -> float:
    """Held-out accuracy of a linear probe between two kinds of samples.

    A ridge classifier on standardised features, fitted on one half of the samples and tried on the
    other, and the other way round. Of the larger kind as many are drawn as the smaller one has.

    Args:
        first: ``(N, C)`` features of one kind.
        second: ``(M, C)`` features of the other.
        seed: Of the halves.

    Returns:
        Accuracy in [0, 1]: about ½ where nothing linear tells them apart.

    Raises:
        ValueError: If a kind has fewer than two samples.
    """
    count = min(len(first), len(second))
    if count < 2:
        raise ValueError(f'a probe needs two samples of each kind, got {len(first)}, {len(second)}')
    rng = derive_rng('probe', seed)
    kinds = [kind[rng.permutation(len(kind))[:count]] for kind in (first, second)]
    halves = [np.concatenate([kind[half::2] for kind in kinds]) for half in (0, 1)]
    signs = [np.repeat([1.0, -1.0], [len(range(half, count, 2))] * 2) for half in (0, 1)]
    right = 0
    for fitted, tried in ((0, 1), (1, 0)):
        scores = _ridge(halves[fitted], signs[fitted], halves[tried])
        right += int((np.sign(scores) == signs[tried]).sum())
    return right / (2 * count)


def _ridge(features: np.ndarray, signs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Scores of other samples by a ridge regression on the signs, in its dual form."""
    features = features.astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    known, asked = (features - mean) / scale, (others - mean) / scale
    gram = known @ known.T / known.shape[1]
    weights = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), signs)
    return asked @ known.T / known.shape[1] @ weights
