# SPDX-License-Identifier: Apache-2.0
"""One step of a search: the loss of every active prompt, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmgap.distributed import all_reduce_sum, raise_on_all_ranks, shard
from mmgap.feedback import Feedback, FeedbackBatch, total_feedback
from mmgap.generators import DiffusionGenerator
from mmgap.search.progress import NonFiniteLossError, PromptProgress
from mmgap.sources import ImageSpec, Sources
from mmgap.targets import TargetModel


@dataclass
class StepScore:
    """What a step says of one prompt.

    Attributes:
        loss: Mean loss of its images.
        attack: The part of the loss from terms that need the target; NaN without one.
        hits: Share of its images that the target names right; NaN where no term needs it.
        gradient: ``(n, width)``, the loss's gradient.
    """

    loss: float
    attack: float
    hits: float
    gradient: Tensor


class SearchStep:
    """Draws images where a prompt's terms need them, sums the terms, takes the gradient.

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
        generator: DiffusionGenerator,
        target: TargetModel,
        feedback: Sequence[Feedback],
        sources: Sources,
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
        self,
        active: Sequence[PromptProgress],
        images: Sequence[ImageSpec],
        following: Sequence[ImageSpec] = (),
    ) -> list[StepScore]:
        """Score the images of a step; the processes of a distributed run share them.

        Args:
            active: The prompts that are searched, at their own steps.
            images: The images, as many for each of these prompts.
            following: Those of the next step, whose sources are read meanwhile.

        Returns:
            One score for each prompt.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        per_prompt, images = len(images) // len(active), images[shard(len(images))]
        needs = [self._needs(progress) for progress in active]
        wanted = [image.source for image in images if needs[image.prompt_index] != 'prompt']
        needed_next = [self._needs(progress, ahead=1) for progress in active]
        following = following[shard(len(following))]
        wanted += [i.source for i in following if needed_next[i.prompt_index] != 'prompt']
        self.sources.prefetch(wanted)
        with raise_on_all_ranks(NonFiniteLossError):
            scored = []
            # Prompts whose terms need no image at their step must not build a diffusion graph.
            for drawn in (True, False):
                part = [i for i in images if (needs[i.prompt_index] != 'prompt') == drawn]
                for start in range(0, len(part), self.batch_size):
                    some = part[start : start + self.batch_size]
                    scored.append(self._score(some, active, needs, per_prompt))
            sums = self._fetch(scored, active)
        gradients = [torch.zeros_like(progress.prompt.embeddings) for progress in active]
        for batch in scored:
            for prompt_index, gradient in zip(batch.prompt_indices, batch.gradients, strict=True):
                gradients[prompt_index] += gradient
        means = (all_reduce_sum([sums])[0] / per_prompt).T.tolist()
        return [
            StepScore(loss, attack, hits, gradient)
            for (loss, attack, hits), gradient in zip(means, all_reduce_sum(gradients), strict=True)
        ]

    def _needs(self, progress: PromptProgress, ahead: int = 0) -> str:
        """The most that the terms which are active at a prompt's step need to see."""
        step = len(progress.losses) + ahead
        needs = {term.needs for term in self.feedback if term.active(step)}
        # After the last step there may be none.
        return next((need for need in ('target', 'image') if need in needs), 'prompt')

    @torch.enable_grad()
    def _score(
        self,
        batch: Sequence[ImageSpec],
        active: Sequence[PromptProgress],
        needs: Sequence[str],
        per_prompt: int,
    ) -> _ScoredBatch:
        """Draw and score a batch; the results stay on the device."""
        indices = sorted({image.prompt_index for image in batch})
        need = 'target' if any(needs[i] == 'target' for i in indices) else needs[indices[0]]
        embeds = self.generator.prompts.encode([active[i].prompt for i in indices])
        chosen, seeds = [image.source for image in batch], [image.seed for image in batch]
        seen = FeedbackBatch(
            hidden=embeds[[indices.index(image.prompt_index) for image in batch]],
            labels=torch.as_tensor(self.sources.labels[chosen]),
            seeds=seeds,
            turns=[active[image.prompt_index].prompt.turn for image in batch],
        )
        hits = torch.full((len(batch),), float('nan'))
        if need != 'prompt':
            condition = self.sources.load(chosen)
            seen.images = self.generator(condition, seen.hidden, seeds, self.num_inference_steps)
            if need == 'target':
                seen.output = self.target(seen.images, condition.truth)
                hits = seen.output.hits(condition.truth)
        steps = [len(active[image.prompt_index].losses) for image in batch]
        total = total_feedback(self.feedback, seen, steps)
        prompts = [active[i].prompt.embeddings for i in indices]
        return _ScoredBatch(
            images=batch,
            prompt_indices=indices,
            values=torch.stack(
                [
                    part.detach().float().to(total.loss.device)
                    for part in (total.loss, total.attack, hits)
                ]
            ),
            gradients=torch.autograd.grad(total.loss.sum() / per_prompt, prompts),
            means=total.means,
        )

    def _fetch(self, scored: Sequence[_ScoredBatch], active: Sequence[PromptProgress]) -> Tensor:
        """Fetch the results of a step's batches from the device, all at once.

        Returns:
            ``(3, prompts)`` on the CPU: sums of loss, attack and hits.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        sums = torch.zeros(3, len(active))
        self.means = {}
        parts: list[Tensor] = []
        for batch in scored:
            finite = [torch.isfinite(gradient).all() for gradient in batch.gradients]
            parts += [batch.values.flatten(), *(flag[None] for flag in finite)]
            parts += [value[None] for value in batch.means.values()]
        if not parts:
            return sums
        device = parts[0].device
        fetched = torch.cat([part.detach().to(device, torch.float32) for part in parts]).cpu()
        start = 0
        for batch in scored:
            sizes = [batch.values.numel(), len(batch.prompt_indices), len(batch.means)]
            values, finite_flags, means = fetched[start : start + sum(sizes)].split(sizes)
            start += sum(sizes)
            values = values.view(batch.values.shape)
            _check_finite(batch, active, values[0].tolist(), finite_flags.tolist())
            sums.index_add_(1, torch.tensor([i.prompt_index for i in batch.images]), values)
            for name, value in zip(batch.means, means.tolist(), strict=True):
                self.means.setdefault(name, []).append(value)
        return sums


@dataclass
class _ScoredBatch:
    """A scored batch of a step, still on the device.

    Attributes:
        images: Its images.
        prompt_indices: The prompts among them, in order.
        values: ``(3, images)``: loss, attack, and whether the target is right. The last two are
            NaN where no term needs the target.
        gradients: Of each prompt's embeddings.
        means: Mean of each term.
    """

    images: Sequence[ImageSpec]
    prompt_indices: list[int]
    values: Tensor
    gradients: Sequence[Tensor]
    means: dict[str, Tensor]


def _check_finite(
    batch: _ScoredBatch,
    active: Sequence[PromptProgress],
    losses: Sequence[float],
    finite: Sequence[float],
) -> None:
    for image, value in zip(batch.images, losses, strict=True):
        if not math.isfinite(value):
            progress = active[image.prompt_index]
            raise NonFiniteLossError(
                f'the loss of prompt {progress.prompt.id} at step {len(progress.losses)} is '
                f'{value} on source {image.source} with seed {image.seed}; the prompt is kept as '
                'it was before. A search with another scheduler, eta or num_inference_steps begins '
                'anew'
            )
    for prompt_index, is_finite in zip(batch.prompt_indices, finite, strict=True):
        if not is_finite:
            progress = active[prompt_index]
            used = [i.source for i in batch.images if i.prompt_index == prompt_index]
            raise NonFiniteLossError(
                f'the gradient of prompt {progress.prompt.id} at step {len(progress.losses)} is '
                f'not finite on sources {used}; the prompt is kept as it was before'
            )
