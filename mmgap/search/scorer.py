# SPDX-License-Identifier: Apache-2.0
"""One step of a search: what feedback says of every active prompt, and in which direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmgap.feedback import Draft, Feedback, TargetModel, total_feedback
from mmgap.generators import SourceSet
from mmgap.search.state import NonFiniteLossError, SearchState
from mmgap.sharding import failing_together, own_part, summed


class Job(NamedTuple):
    """One image of a step: the prompt's place among the active ones, its source, its seed."""

    place: int
    source: int
    seed: int


class Scores(NamedTuple):
    """What a step says of each active prompt.

    Attributes:
        losses: Mean loss.
        attacks: Of it the terms that ask the target; NaN if none does.
        hits: Share of images that the target names right; NaN if no term asks it.
        gradients: The loss's gradient.
    """

    losses: list[float]
    attacks: list[float]
    hits: list[float]
    gradients: list[Tensor]


class Scorer:
    """Draw images where a prompt's terms need them, ask the terms, take the gradient.

    Args:
        generator: Draws images.
        target: The model in training.
        feedback: Prepared terms.
        sources: Labelled, masked images.
        num_inference_steps: Denoising steps of an image.
        batch_size: Images drawn at a time, by each process of a distributed run.

    Attributes:
        means: Mean of each term in each batch of the latest step that this process drew, for its
            own log: those of other processes are not in it.
    """

    def __init__(
        self,
        generator: Any,
        target: TargetModel,
        feedback: Sequence[Feedback],
        sources: SourceSet,
        num_inference_steps: int,
        batch_size: int,
    ) -> None:
        self.generator = generator
        self.target = target
        self.feedback = feedback
        self.sources = sources
        self.num_inference_steps = num_inference_steps
        self.batch_size = batch_size
        self.means: dict[str, list[float]] = {}

    def __call__(self, active: Sequence[SearchState], jobs: Sequence[Job]) -> Scores:
        """Score the images of a step; the processes of a distributed run share them.

        Args:
            active: The prompts that are searched, at their own steps.
            jobs: The images, as many for each prompt.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        count, jobs = len(jobs) // len(active), jobs[own_part(len(jobs))]
        sums = torch.zeros(3, len(active))  # loss, attack, hit
        gradients = [torch.zeros_like(state.prompt.embeddings) for state in active]
        self.means = {}
        needs = [self._needs(state) for state in active]
        with failing_together(NonFiniteLossError):
            # Prompts whose terms need no image at their step must not build a diffusion graph.
            for kind in (True, False):
                part = [job for job in jobs if (needs[job.place] != 'prompt') == kind]
                for start in range(0, len(part), self.batch_size):
                    batch = part[start : start + self.batch_size]
                    self._add(batch, active, needs, count, sums, gradients)
        means = (summed([sums])[0] / count).tolist()
        return Scores(*means, summed(gradients))

    def _add(
        self,
        batch: Sequence[Job],
        active: Sequence[SearchState],
        needs: Sequence[str],
        count: int,
        sums: Tensor,
        gradients: list[Tensor],
    ) -> None:
        """Add what a batch says to the sums of each prompt."""
        places = sorted({job.place for job in batch})
        need = 'target' if any(needs[p] == 'target' for p in places) else needs[places[0]]
        loss, seen = self._score(batch, active, places, need)
        prompts = [active[place].prompt.embeddings for place in places]
        grads = torch.autograd.grad(loss.sum() / count, prompts)
        self._check_finite(batch, active, loss, places, grads)
        where = torch.tensor([job.place for job in batch])
        sums.index_add_(1, where, torch.stack([loss.detach().float().cpu(), *seen]))
        for place, grad in zip(places, grads, strict=True):
            gradients[place] += grad

    def _needs(self, state: SearchState) -> str:
        """The most that the terms which are active at a prompt's step need to see."""
        needs = {term.needs for term in self.feedback if term.active(len(state.losses))}
        return next(need for need in ('target', 'image', 'prompt') if need in needs)

    @torch.enable_grad()
    def _score(
        self, batch: Sequence[Job], active: Sequence[SearchState], places: list[int], need: str
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss of each image; then the attack's, and whether the target is right, or NaN."""
        embeds = self.generator.prompts.encode([active[place].prompt for place in places])
        row = torch.tensor([places.index(job.place) for job in batch], device=embeds.device)
        chosen, seeds = [job.source for job in batch], [job.seed for job in batch]
        labels = torch.as_tensor(self.sources.labels[chosen], device=embeds.device)
        numbers = [active[job.place].prompt.number for job in batch]
        draft = Draft(embeds[row], labels, seeds, numbers)
        hits = torch.full((len(batch),), float('nan'))
        if need != 'prompt':
            condition = self.sources.load(chosen)
            draft.images = self.generator(condition, draft.hidden, seeds, self.num_inference_steps)
        if need == 'target':
            draft.output = self.target(draft.images, condition.truth)
            hits = draft.output.hits(condition.truth)
        steps = [len(active[job.place].losses) for job in batch]
        total = total_feedback(self.feedback, draft, steps)
        for name, value in total.means.items():
            self.means.setdefault(name, []).append(value)
        return total.loss, [total.attack.float().cpu(), hits]

    @staticmethod
    def _check_finite(
        batch: Sequence[Job],
        active: Sequence[SearchState],
        loss: Tensor,
        places: Sequence[int],
        grads: Sequence[Tensor],
    ) -> None:
        for job, value in zip(batch, loss.tolist(), strict=True):
            if value - value != 0:
                state = active[job.place]
                raise NonFiniteLossError(
                    f'the loss of prompt {state.prompt.id} at step {len(state.losses)} is {value} '
                    f'on source {job.source} with seed {job.seed}; the prompt is kept as it was '
                    'before'
                )
        for place, grad in zip(places, grads, strict=True):
            if not torch.isfinite(grad).all():
                state = active[place]
                used = [job.source for job in batch if job.place == place]
                raise NonFiniteLossError(
                    f'the gradient of prompt {state.prompt.id} at step {len(state.losses)} is not '
                    f'finite on sources {used}; the prompt is kept as it was before'
                )
