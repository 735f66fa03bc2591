# SPDX-License-Identifier: Apache-2.0
"""One step of a search: what feedback says of every active prompt, and in which direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmgap.distributed import all_reduce_sum, raise_on_all_ranks, shard
from mmgap.feedback import Feedback, FeedbackBatch, total_feedback
from mmgap.search.progress import NonFiniteLossError, PromptProgress
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel


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


class SearchStep:
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

    def __call__(
        self, active: Sequence[PromptProgress], jobs: Sequence[Job], following: Sequence[Job] = ()
    ) -> Scores:
        """Score the images of a step; the processes of a distributed run share them.

        Args:
            active: The prompts that are searched, at their own steps.
            jobs: The images, as many for each prompt.
            following: Those of the next step, whose sources are read meanwhile.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        count, jobs = len(jobs) // len(active), jobs[shard(len(jobs))]
        needs = [self._needs(state) for state in active]
        wanted = [job.source for job in jobs if needs[job.place] != 'prompt']
        later = [self._needs(state, ahead=1) for state in active]
        following = following[shard(len(following))]
        wanted += [job.source for job in following if later[job.place] != 'prompt']
        self.sources.prefetch(wanted)
        with raise_on_all_ranks(NonFiniteLossError):
            scored = []
            # Prompts whose terms need no image at their step must not build a diffusion graph.
            for kind in (True, False):
                part = [job for job in jobs if (needs[job.place] != 'prompt') == kind]
                for start in range(0, len(part), self.batch_size):
                    batch = part[start : start + self.batch_size]
                    scored.append(self._score(batch, active, needs, count))
            sums = self._read(scored, active)
        gradients = [torch.zeros_like(state.prompt.embeddings) for state in active]
        for part in scored:
            for place, gradient in zip(part.places, part.gradients, strict=True):
                gradients[place] += gradient
        means = (all_reduce_sum([sums])[0] / count).tolist()
        return Scores(*means, all_reduce_sum(gradients))

    def _needs(self, state: PromptProgress, ahead: int = 0) -> str:
        """The most that the terms which are active at a prompt's step need to see."""
        step = len(state.losses) + ahead
        needs = {term.needs for term in self.feedback if term.active(step)}
        # After the last step there may be none.
        return next((need for need in ('target', 'image') if need in needs), 'prompt')

    @torch.enable_grad()
    def _score(
        self,
        batch: Sequence[Job],
        active: Sequence[PromptProgress],
        needs: Sequence[str],
        count: int,
    ) -> _Scored:
        """Draw and score a batch; what it says stays on the device."""
        places = sorted({job.place for job in batch})
        need = 'target' if any(needs[p] == 'target' for p in places) else needs[places[0]]
        embeds = self.generator.prompts.encode([active[place].prompt for place in places])
        chosen, seeds = [job.source for job in batch], [job.seed for job in batch]
        labels = torch.as_tensor(self.sources.labels[chosen])
        numbers = [active[job.place].prompt.number for job in batch]
        draft = FeedbackBatch(
            embeds[[places.index(job.place) for job in batch]], labels, seeds, numbers
        )
        hits = torch.full((len(batch),), float('nan'))
        if need != 'prompt':
            condition = self.sources.load(chosen)
            draft.images = self.generator(condition, draft.hidden, seeds, self.num_inference_steps)
        if need == 'target':
            draft.output = self.target(draft.images, condition.truth)
            hits = draft.output.hits(condition.truth)
        total = total_feedback(self.feedback, draft, [len(active[j.place].losses) for j in batch])
        prompts = [active[place].prompt.embeddings for place in places]
        return _Scored(
            jobs=batch,
            places=places,
            values=torch.stack(
                [part.detach().float().to(total.loss.device) for part in (*total[:2], hits)]
            ),
            gradients=torch.autograd.grad(total.loss.sum() / count, prompts),
            means=total.means,
        )

    def _read(self, scored: Sequence[_Scored], active: Sequence[PromptProgress]) -> Tensor:
        """Fetch what the batches of a step say from the device, all at once.

        Returns:
            ``(3, prompts)`` on the CPU: sums of loss, attack and hits.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        sums = torch.zeros(3, len(active))
        self.means = {}
        parts = []
        for part in scored:
            finite = [torch.isfinite(gradient).all() for gradient in part.gradients]
            parts += [part.values.flatten(), *(flag[None] for flag in finite)]
            parts += [value[None] for value in part.means.values()]
        if not parts:
            return sums
        device = parts[0].device
        numbers = torch.cat([part.detach().to(device, torch.float32) for part in parts]).cpu()
        start = 0
        for part in scored:
            sizes = [part.values.numel(), len(part.places), len(part.means)]
            values, finite, means = numbers[start : start + sum(sizes)].split(sizes)
            start += sum(sizes)
            values = values.view(part.values.shape)
            _check_finite(part, active, values[0].tolist(), finite.tolist())
            where = torch.tensor([job.place for job in part.jobs])
            sums.index_add_(1, where, values)
            for name, value in zip(part.means, means.tolist(), strict=True):
                self.means.setdefault(name, []).append(value)
        return sums


class _Scored(NamedTuple):
    """What a batch of a step says, still on the device.

    Attributes:
        jobs: Its images.
        places: The prompts among them, in order.
        values: ``(3, images)``: loss; of it the attack; whether the target is right. NaN where no
            term asks the target.
        gradients: Of each prompt's embeddings.
        means: Mean of each term.
    """

    jobs: Sequence[Job]
    places: list[int]
    values: Tensor
    gradients: Sequence[Tensor]
    means: dict[str, Tensor]


def _check_finite(
    part: _Scored,
    active: Sequence[PromptProgress],
    losses: Sequence[float],
    finite: Sequence[float],
) -> None:
    for job, value in zip(part.jobs, losses, strict=True):
        if value - value != 0:
            state = active[job.place]
            raise NonFiniteLossError(
                f'the loss of prompt {state.prompt.id} at step {len(state.losses)} is {value} '
                f'on source {job.source} with seed {job.seed}; the prompt is kept as it was '
                'before. A search with another scheduler, eta or num_inference_steps begins anew'
            )
    for place, good in zip(part.places, finite, strict=True):
        if not good:
            state = active[place]
            used = [job.source for job in part.jobs if job.place == place]
            raise NonFiniteLossError(
                f'the gradient of prompt {state.prompt.id} at step {len(state.losses)} is not '
                f'finite on sources {used}; the prompt is kept as it was before'
            )
