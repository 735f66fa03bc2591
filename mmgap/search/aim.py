# SPDX-License-Identifier: Apache-2.0
"""Where the target fails is where images are worth their cost: shares by failure rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def allocation(rates: Sequence[float], aim: float) -> np.ndarray:
    """What each of several prompts gets of a whole.

    Args:
        rates: Failure rate of each, not negative.
        aim: The part that is shared out in proportion to the rates; the rest goes to all alike.
            Where the target fails nowhere, all goes to all alike.

    Returns:
        As many shares, of sum 1.

    Raises:
        ValueError: If ``aim`` is not in [0, 1].
    """
    if not 0 <= aim <= 1:
        raise ValueError(f'aim must be in [0, 1], got {aim}')
    rates = np.asarray(rates, dtype=float)
    alike = np.full(len(rates), 1 / len(rates))
    return alike if rates.sum() == 0 else (1 - aim) * alike + aim * rates / rates.sum()


def round_robin(parts: Sequence[float], count: int) -> list[int]:
    """Draws by shares, always from what is farthest behind: the first few are in proportion too.

    Equal shares take turns in their order. Fewer draws are the beginning of more.

    Args:
        parts: Share of each, of sum 1.
        count: How many draws.

    Returns:
        ``count`` indices.
    """
    drawn = np.zeros(len(parts))
    order = []
    for turn in range(1, count + 1):
        behind = np.asarray(parts) * turn - drawn
        order.append(int(np.round(behind, 9).argmax()))  # rounding must not decide between equals
        drawn[order[-1]] += 1
    return order
