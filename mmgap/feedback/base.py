# SPDX-License-Identifier: Apache-2.0
"""What every feedback has in common: what it needs to see, its weight, and when it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mmgap.configs import refuse_old_names
from mmgap.files import plain
from mmgap.generators import DiffusionGenerator
from mmgap.targets import TargetOutput

T = TypeVar('T')


def prepared(made: T | None) -> T:
    """What a term or a critic has made in ``prepare``.

    Raises:
        RuntimeError: If it has not been prepared.
    """
    if made is None:
        raise RuntimeError('call prepare() first: it computes what does not change')
    return made


@dataclass
class FeedbackBatch:
    """A batch as feedback sees it.

    Attributes:
        hidden: ``(B, length, width)``, hidden states of each image's prompt, from the generator's
            prompt encoder.
        labels: ``(B,)`` classes, on the CPU.
        seeds: One seed per image.
        turns: Turn of each image's prompt, see :class:`~mmgap.prompts.SoftPrompt`.
        images: ``(B, 3, H, W)`` RGB in [0, 1]; None where no feedback needs images.
        output: What the target says of the images; None where no feedback needs it.
    """

    hidden: Tensor
    labels: Tensor
    seeds: Sequence[int]
    turns: Sequence[int]
    images: Tensor | None = None
    output: TargetOutput | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def drawn(self) -> Tensor:
        """The images, for a term that looks at them.

        Raises:
            ValueError: If there are none; says what a term must say to be shown some.
        """
        if self.images is None:
            raise ValueError("this batch has no images; a term that looks at them needs = 'image'")
        return self.images


class Feedback:
    """One term of what a prompt search minimises.

    Args:
        weight: Factor of this term; 0 switches it off.
        start: First step of a prompt's search at which the term counts.
        end: Step from which it counts no more; None for never. ``end=200`` is "only for the first
            200 steps".

    Attributes:
        needs: ``'prompt'``, ``'image'`` or ``'target'``: the least that must be computed. A step
            whose terms all need the prompt alone draws no image.
        label_type: ``'classes'`` or ``'depth'``, what the target must say; None where the term does
            not ask it.
        floor: The least that the term can come to, without the weight; None where there is none.

    Raises:
        ValueError: If the weight is negative or the steps are out of order.
    """

    needs = 'target'
    label_type: str | None = None
    floor: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_old_names(
            cls, about='settings', judges='label_type', target_images='guidance_images'
        )

    def __init__(self, weight: float = 1.0, start: int = 0, end: int | None = None) -> None:
        name = type(self).__name__
        if not 0 <= weight < float('inf'):
            raise ValueError(f'{name} weight must be at least 0 and finite, got {weight}')
        if start < 0 or (end is not None and end <= start):
            raise ValueError(f'{name} must have 0 <= start < end, got start={start}, end={end}')
        self.weight = weight
        self.start = start
        self.end = end

    def active(self, step: int) -> bool:
        """Whether the term counts at this step of a prompt's search."""
        return self.weight > 0 and self.start <= step and (self.end is None or step < self.end)

    def prepare(
        self, generator: DiffusionGenerator, classes: Sequence[str], cache: Path | None = None
    ) -> None:
        """Compute what does not change during a search. May be called again; then it is quick.

        Args:
            generator: Draws the images.
            classes: Class names.
            cache: Folder for what is worth keeping on disk; None for nowhere.
        """

    def guidance_images(self) -> list[str]:
        """Paths of the images of the target distribution that a prepared term looks at."""
        return []

    def settings(self) -> dict[str, Any]:
        """Type and settings as plain data, for provenance and fingerprints."""
        settings = {name: value for name, value in vars(self).items() if name[0] != '_'}
        return plain(dict(settings, type=type(self).__name__))

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: the loss of each image, without the weight, to be minimised."""
        raise NotImplementedError(f'{type(self).__name__} says nothing of a batch')


def least_attack(feedback: Sequence[Feedback]) -> float:
    """Lower bound of the weighted sum of all terms that need the target; inf without any."""
    attack = [term for term in feedback if term.needs == 'target' and term.weight > 0]
    if not attack:
        return float('inf')
    floors = [-float('inf') if term.floor is None else term.floor for term in attack]
    return sum(term.weight * floor for term, floor in zip(attack, floors, strict=True))


class Total(NamedTuple):
    """What all terms together say of a batch.

    Attributes:
        loss: ``(B,)`` with gradient, the weighted sum.
        attack: ``(B,)``, the part of the loss from terms that need the target; NaN for
            images without one.
        means: Mean of each term by name, for the log; still on the device.
    """

    loss: Tensor
    attack: Tensor
    means: dict[str, Tensor]


def total_feedback(
    feedback: Sequence[Feedback], batch: FeedbackBatch, steps: Sequence[int] | None = None
) -> Total:
    """Weighted sum of the terms.

    Args:
        feedback: The terms.
        batch: The batch.
        steps: Step of each image's prompt; None takes all terms whatever their start and end.
    """
    total = torch.zeros(len(batch), device=batch.hidden.device)
    attack = torch.full_like(total, float('nan'))
    means: dict[str, Tensor] = {}
    for term in feedback:
        counts = [
            term.weight > 0 if steps is None else term.active(s) for s in steps or batch.seeds
        ]
        if not any(counts):
            continue
        loss = term(batch).to(total.device)
        counted, more = loss, attack.nan_to_num() + term.weight * loss.detach()
        if not all(counts):
            where = torch.tensor(counts, device=total.device)
            counted, more = torch.where(where, loss, 0.0), torch.where(where, more, attack)
        total = total + term.weight * counted
        if term.needs == 'target':
            attack = more
        name = type(term).__name__
        same = sum(known.partition(' ')[0] == name for known in means)
        means[f'{name} {same + 1}' if same else name] = counted.detach().sum() / sum(counts)
    return Total(total, attack, means)
