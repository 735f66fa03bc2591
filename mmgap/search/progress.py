# SPDX-License-Identifier: Apache-2.0
"""How far the search of each prompt is, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmgap.prompts import SoftPrompt


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient of the search was NaN or Inf; the message names the sample."""


@dataclass
class PromptProgress:
    """How far the search of one prompt is.

    Attributes:
        prompt: The prompt itself.
        initial: ``(n, width)``, its embeddings at the latest (re)start.
        losses: Feedback loss of each step since then, mean over the step's images.
        attacks: The part of these losses from terms that need the target; NaN without one.
        hits: Share of each step's images that the target still names right; NaN where no active
            feedback asks it.
        total: Steps in all, those before the restarts included.
        restarts: How often it started again.
        done: Whether it has stopped.
        snapshots: Embeddings at some steps, for the picture of the search.
    """

    prompt: SoftPrompt
    initial: Tensor
    losses: list[float] = field(default_factory=list)
    attacks: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    total: int = 0
    restarts: int = 0
    done: bool = False
    snapshots: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class FoundPrompt:
    """A prompt after its search, evaluated on held-out sources.

    Attributes:
        prompt: The prompt.
        target_loss_before: Target's own loss on images of the initial embeddings, mean; as the next
            three None where prompts are not evaluated.
        target_loss_after: The same for the found embeddings, same sources and seeds.
        accuracy_before: Share of those images that the target names right, initially.
        accuracy_after: The same for the found embeddings.
        steps: Steps since the latest start.
        restarts: How often it started again.
        snapshots: Embeddings at some steps, in order, the first and the found ones included.
        alarm: Why an alignment alarm did not let the found embeddings pass; None if it did.
        kept_step: The step whose embeddings are kept then.
        evaluations: Its part of the network evaluations of the search; see
            :class:`~mmgap.generators.evaluations.Evaluations`. None where nobody counted.
        words: For each token the nearest words of the vocabulary with their cosine similarities.
    """

    prompt: SoftPrompt
    target_loss_before: float | None
    target_loss_after: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    steps: int
    restarts: int
    snapshots: dict[int, Tensor]
    alarm: str | None = None
    kept_step: int | None = None
    evaluations: float | None = None
    words: Sequence[Sequence[tuple[str, float]]] = ()

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """The facts for ``summary.json`` and the prompt's provenance."""
        label = self.prompt.label
        return {
            'id': self.prompt.id,
            'class': None if label is None else classes[label],
            'target_loss_before': self.target_loss_before,
            'target_loss_after': self.target_loss_after,
            'accuracy_before': self.accuracy_before,
            'accuracy_after': self.accuracy_after,
            'steps': self.steps,
            'restarts': self.restarts,
            'alarm': self.alarm,
            'kept_step': self.kept_step,
            'evaluations': self.evaluations,
            'snapshots': list(self.snapshots),
            'words': [[list(word) for word in words] for words in self.words],
        }
