# SPDX-License-Identifier: Apache-2.0
"""The alignment alarm: do the images of a found prompt still show their class?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor

from mmgap.distributed import all_gather_list, broadcast_object
from mmgap.feedback import Critic, hidden_state_distance
from mmgap.prompts import SoftPrompt
from mmgap.search.evaluation import PromptEvaluator
from mmgap.search.progress import FoundPrompt


class AlignmentAlarm:
    """Goes back to the last good prompt where a found one drops too many images or drifts too far.

    Each found prompt is looked at on held-out sources. Where it fails, the embeddings that the
    search passed through are tried from the latest to the first, and the first that pass are kept;
    where none does, the prompt is as it started.

    Args:
        critic: Prepared critic with a threshold, for ``max_dropped``.
        max_dropped: Largest share of a prompt's images that the critic may drop.
        captions: What the training data show, for ``max_drift``.
        max_drift: Largest cosine distance, over features and averaged over tokens, between the
            prompt's hidden states and those of the nearest caption.

    Raises:
        ValueError: If a limit is out of range or lacks what it is measured with.
    """

    def __init__(
        self,
        critic: Critic | None = None,
        max_dropped: float | None = None,
        captions: Sequence[str] | None = None,
        max_drift: float | None = None,
    ) -> None:
        if max_dropped is None and max_drift is None:
            raise ValueError('the alarm needs max_dropped or max_drift')
        if max_dropped is not None and not 0 <= max_dropped <= 1:
            raise ValueError(f'alarm max_dropped must be in [0, 1], got {max_dropped}')
        if max_dropped is not None and (critic is None or critic.threshold is None):
            raise ValueError('alarm max_dropped needs a critic with a threshold: GAPHook(critic=…)')
        if max_drift is not None and (max_drift < 0 or not captions):
            raise ValueError(
                f'alarm max_drift must not be negative and needs captions, got {max_drift} and '
                f'{captions!r}'
            )
        self.critic = critic
        self.max_dropped = max_dropped
        self.captions = list(captions or ())
        self.max_drift = max_drift
        self._states: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        return dict(
            max_dropped=self.max_dropped,
            threshold=None if self.critic is None else self.critic.threshold,
            captions=self.captions,
            max_drift=self.max_drift,
        )

    @torch.no_grad()
    def check(
        self, found: FoundPrompt, evaluator: PromptEvaluator, held_out: Sequence[int]
    ) -> FoundPrompt:
        """The prompt as it is, or at its last good step.

        Args:
            found: A prompt after its search. Its embeddings are put back in place.
            evaluator: Draws images of the prompt and evaluates the target.
            held_out: Sources that the search has not seen.
        """
        prompt, steps = found.prompt, sorted(found.snapshots, reverse=True)
        reasons = self._reasons(prompt, evaluator, held_out)
        if not reasons:
            return found
        found.alarm = '; '.join(reasons)
        for step in steps[1:]:
            prompt.embeddings.copy_(found.snapshots[step])
            if not self._reasons(prompt, evaluator, held_out):
                break
        else:
            step = min(steps)
        found.kept_step = step
        found.target_loss_after, found.accuracy_after = evaluator.evaluate(prompt, held_out)
        MMLogger.get_current_instance().warning(
            f'[gap] alignment alarm: {prompt.id}: {found.alarm}; it is kept as it was at step '
            f'{step} of {found.steps}'
        )
        return found

    def _reasons(
        self, prompt: SoftPrompt, evaluator: PromptEvaluator, held_out: Sequence[int]
    ) -> list[str]:
        reasons = []
        if self.max_drift is not None:
            drift = broadcast_object(self._drift(prompt, evaluator.generator.prompts))
            if drift > self.max_drift:
                reasons.append(f'drift {drift:.3f} is above {self.max_drift}')
        critic = self.critic
        if critic is not None and self.max_dropped is not None:
            agreements = all_gather_list(
                [
                    value
                    for condition, images in evaluator.draw(prompt, held_out)
                    for value in critic(images, condition.masks, condition.truth).tolist()
                ]
            )
            share = sum(not critic.keeps(value) for value in agreements) / len(agreements)
            if share > self.max_dropped:
                reasons.append(
                    f'{share:.0%} of its images are dropped, above {self.max_dropped:.0%}'
                )
        return reasons

    def _drift(self, prompt: Any, encoder: Any) -> float:
        if self._states is None:
            self._states = encoder.encode_text(self.captions).float()
        hidden = encoder.encode([prompt]).float()
        distances = hidden_state_distance(self._states, hidden[0], 'cosine')
        return float(distances.min())
