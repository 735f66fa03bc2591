# SPDX-License-Identifier: Apache-2.0
"""Aim: prompts and images are allocated by how often the target fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from mmengine.logging import MMLogger

from mmgap.feedback import Critic
from mmgap.prompts import SoftPrompt
from mmgap.search.evaluation import PromptEvaluator
from mmgap.search.initial_prompts import initial_prompts

if TYPE_CHECKING:
    from mmgap.search.prompt_search import PromptSearch


def allocation(rates: Sequence[float], aim: float) -> np.ndarray:
    """The share of each of several prompts.

    Args:
        rates: Failure rate of each, not negative.
        aim: The part that is allocated in proportion to the rates; the rest is divided equally.
            Where the target fails nowhere, everything is divided equally.

    Returns:
        As many shares, of sum 1.

    Raises:
        ValueError: If ``aim`` is not in [0, 1].
    """
    if not 0 <= aim <= 1:
        raise ValueError(f'aim must be in [0, 1], got {aim}')
    weights = np.asarray(rates, dtype=float)
    equal = np.full(len(weights), 1 / len(weights))
    total = weights.sum()
    return equal if total == 0 else (1 - aim) * equal + aim * weights / total


def round_robin(parts: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Draws by shares, always what is farthest behind: the first few are in proportion too.

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


def failure_rates(
    evaluator: PromptEvaluator,
    prompts: Sequence[SoftPrompt],
    names: Sequence[str],
    label: int,
    chosen: Sequence[int],
    critic: Critic | None = None,
) -> list[float]:
    """How often the target fails on the images of each prompt, for one class; logs it.

    Args:
        evaluator: Draws the images, which are not kept, and evaluates the target.
        prompts: The prompts.
        names: What the log calls them.
        label: The class.
        chosen: Sources of this class, one for each image of a prompt.
        critic: Only images that it keeps count as failures.
    """
    rates = [evaluator.failure_rate(prompt, chosen, critic) for prompt in prompts]
    listed = ', '.join(f'{name} {rate:.2f}' for name, rate in zip(names, rates, strict=True))
    name = evaluator.sources.classes[label]
    MMLogger.get_current_instance().info(f'[gap] the target fails on {name}: {listed}')
    return rates


def aimed_starts(
    search: PromptSearch, critic: Critic | None = None, round_index: int = 0
) -> list[list[int]]:
    """Which entry of a list ``init`` each prompt of each class starts from, by failure rates.

    Args:
        search: A search with ``aim`` above 0.
        critic: As for :func:`failure_rates`.
        round_index: The round, by which prompts ``grow``.

    Returns:
        For each class, an index into ``init`` for each prompt.
    """
    settings, order = search.settings, []
    starts, count = settings.starts, settings.prompts_per_class
    one_each = replace(settings, prompts_per_class=len(starts))
    for label, name in enumerate(search.sources.classes):
        prompts = initial_prompts(
            search.generator.prompts, [name], one_each, search.seed, round_index=round_index
        )
        rates = failure_rates(
            search.evaluator,
            prompts,
            [repr(start) for start in starts],
            label,
            search.split.searched(label)[: settings.holdout].tolist(),
            critic,
        )
        # Where it fails on all alike, each class goes on where the one before ended.
        shift = label * count % len(starts)
        turns = round_robin(allocation(np.roll(rates, -shift).tolist(), settings.aim), count)
        order.append([(turn + shift) % len(starts) for turn in turns])
    return order
