# SPDX-License-Identifier: Apache-2.0
"""Guidance of samples: feedback steers each image while it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmgap.feedback import Feedback, FeedbackBatch, total_feedback
from mmgap.files import plain
from mmgap.generators.steering import Steering, check_steering
from mmgap.sources import Condition
from mmgap.targets import TargetModel


@dataclass(frozen=True)
class GuidanceSettings:
    """How feedback steers images while they are drawn, see :class:`Steering`.

    Attributes:
        feedback: Configs of the terms; None for those of the hook.
        weight: How far the clean latents are moved at a step; 0 draws as without guidance.
        every: Steers at each so many denoising steps.

    Raises:
        ValueError: If a number is out of range, or there is an empty list of terms.
    """

    feedback: Sequence[Mapping[str, Any]] | None = None
    weight: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        check_steering(self.weight, self.every)
        if self.feedback is not None and not self.feedback:
            raise ValueError('guidance feedback is an empty list; give terms, or leave it out')


class SampleGuidance:
    """The prepared terms that steer images.

    Args:
        feedback: Prepared terms; those that look at the prompt alone do not count.
        settings: How far and how often.

    Raises:
        ValueError: If no term looks at images.
    """

    def __init__(self, feedback: Sequence[Feedback], settings: GuidanceSettings) -> None:
        self.feedback = [t for t in feedback if t.needs != 'prompt' and t.weight > 0]
        self.settings = settings
        if not self.feedback:
            raise ValueError('guidance of samples needs a term of feedback that looks at images')

    @property
    def needs_target(self) -> bool:
        """Whether a term asks the target."""
        return any(term.needs == 'target' for term in self.feedback)

    def identity(self, target: TargetModel | None) -> dict[str, Any]:
        """What decides how images are steered, as plain data.

        Raises:
            ValueError: If a term asks the target and there is none.
        """
        if target is None and self.needs_target:
            raise ValueError('guidance of samples asks the target; give a checkpoint')
        asked = target.identity() if target and self.needs_target else None
        terms = [term.settings() for term in self.feedback]
        own = dict(weight=self.settings.weight, every=self.settings.every)
        return plain(dict(own, feedback=terms, target=asked))

    def steering(
        self, batch: FeedbackBatch, condition: Condition, target: TargetModel | None
    ) -> Steering:
        """What steers a batch.

        Args:
            batch: The batch, without images yet.
            condition: Its sources.
            target: The model in training.
        """
        loss = self._loss(batch, condition, target)
        return Steering(loss, self.settings.weight, self.settings.every)

    def _loss(
        self, batch: FeedbackBatch, condition: Condition, target: TargetModel | None
    ) -> Callable[[Tensor], Tensor]:
        def loss(images: Tensor) -> Tensor:
            seen = replace(batch, images=images)
            if target is not None and self.needs_target:
                with target.frozen():
                    seen.output = target(images, condition.truth)
            return total_feedback(self.feedback, seen).loss

        return loss
