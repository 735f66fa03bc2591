# SPDX-License-Identifier: Apache-2.0
"""Selection: of images that are drawn, those that the target finds useful are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.targets import ClassOutput, TargetOutput

MEASURES = ('loss', 'entropy', 'margin', 'feedback')


@dataclass(frozen=True)
class Keep:
    """Which of the images that are drawn over the budget are kept.

    Attributes:
        by: How useful an image is to the target: its ``'loss'``; for classifiers the
            ``'entropy'`` of what it says, or the ``'margin'`` by which it prefers another class to
            the true one; or the ``'feedback'``, most useful where the weighted sum of the terms
            that look at images is lowest.
        rank: Which ones: 1 the most useful, 0 the least, 0.5 those in the middle. The hardest
            images are not always the best to train on (arXiv 2411.18109).

    Raises:
        ValueError: If there is no such measure or the rank is outside of [0, 1].
    """

    by: str = 'loss'
    rank: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in MEASURES:
            raise ValueError(f'synthesis keep by must be one of {MEASURES}, got {self.by!r}')
        if not 0 <= self.rank <= 1:
            raise ValueError(f'synthesis keep rank must be in [0, 1], got {self.rank}')


def usefulness(output: TargetOutput, truth: Tensor, feedback: Tensor | None, by: str) -> Tensor:
    """How useful images are to the target, see :class:`Keep`.

    Args:
        output: What the target says of ``B`` images.
        truth: Their labels.
        feedback: ``(B,)``, the weighted sum of the terms that look at images; None without any.
        by: A measure of :class:`Keep`.

    Returns:
        ``(B,)``, higher is more useful.

    Raises:
        ValueError: If the measure needs a classifier, or feedback, and there is none.
    """
    if by == 'loss':
        return output.loss.detach()
    if by == 'feedback':
        if feedback is None:
            raise ValueError(
                "synthesis keep by='feedback' needs a term of feedback that looks at images"
            )
        return -feedback.detach()
    if not isinstance(output, ClassOutput):
        raise ValueError(
            f"synthesis keep by={by!r} needs a classifier; take 'loss' or 'feedback' for depth"
        )
    probabilities = output.logits.detach().float().softmax(dim=1)
    if by == 'entropy':
        return torch.special.entr(probabilities).sum(dim=1)
    true = F.one_hot(truth.to(probabilities.device), probabilities.shape[1]).bool()
    others = probabilities.masked_fill(true, 0).amax(dim=1)
    return others - probabilities.masked_fill(~true, 0).amax(dim=1)


def choose(
    values: Sequence[float],
    cells: Sequence[tuple[int, Hashable]],
    eligible: Sequence[bool],
    overdraw: int,
    rank: float = 1.0,
) -> list[bool]:
    """Choose one of ``overdraw`` images by usefulness, within classes and groups of sources.

    Each class keeps its share of the images, and in it each group of sources the whole images of
    its share; the rest is chosen among all groups. Where a critic leaves a class too few, others
    fill up.

    Args:
        values: Usefulness of each image.
        cells: Class and group of the source of each image.
        eligible: Whether the critic lets it pass.
        overdraw: Images for each one that is chosen.
        rank: See :class:`Keep`.

    Returns:
        Whether each image is chosen.
    """
    chosen = [False] * len(values)

    def take(fits: Sequence[bool], number: int) -> int:
        """Choose among those that fit and are free; returns how many are still wanted."""
        free = [i for i, fit in enumerate(fits) if fit and eligible[i] and not chosen[i]]
        free.sort(key=lambda i: (values[i], i))
        taken = min(number, len(free))
        first = round(rank * (len(free) - taken))
        for i in free[first : first + taken]:
            chosen[i] = True
        return number - taken

    missing = 0
    for label, drawn in sorted(Counter(label for label, _ in cells).items()):
        wanted = count = drawn // overdraw
        groups = Counter(group for other, group in cells if other == label)
        for group, number in sorted(groups.items(), key=str):
            share = count * number // drawn
            wanted -= share - take([cell == (label, group) for cell in cells], share)
        missing += take([other == label for other, _ in cells], wanted)
    take([True] * len(cells), missing)
    return chosen
