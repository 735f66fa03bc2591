# SPDX-License-Identifier: Apache-2.0
"""Evaluation of prompts on sources that their search never saw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import Tensor

from mmgap.distributed import all_gather_list, raise_on_all_ranks, shard
from mmgap.feedback import Critic
from mmgap.generators import DiffusionGenerator
from mmgap.prompts import SoftPrompt
from mmgap.search.progress import FoundPrompt, NonFiniteLossError, PromptProgress
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import Condition, Sources
from mmgap.targets import TargetModel, TargetOutput


class SourceSplit:
    """Splits sources into those that are searched with and those held out.

    What a class holds out, prompts of no class are not searched with either, and are evaluated on.

    Args:
        sources: Labelled samples.
        holdout: How many of each class are held out, a third at most; prompts of no class are
            evaluated on as many of all these. Where that is none, prompts are evaluated on all;
            with 0 on none.
        seed: Seed of the split.
    """

    def __init__(self, sources: Sources, holdout: int, seed: int) -> None:
        self.sources = sources
        self.holdout = holdout
        self.seed = seed
        self._parts: dict[int | None, tuple[np.ndarray, list[int]]] = {}

    def searched(self, label: int | None) -> np.ndarray:
        """Indices to search with, of one class or of all."""
        return self._split(label)[0]

    def held_out(self, label: int | None) -> list[int]:
        """Indices to evaluate on, of one class or of all."""
        return self._split(label)[1]

    def _split(self, label: int | None) -> tuple[np.ndarray, list[int]]:
        if self.holdout == 0:
            return self.sources.of_class(label), []
        if label not in self._parts:
            apart = self._of_all_classes() if label is None else []
            self._parts[label] = self._without(apart) if apart else self._halves(label)
        return self._parts[label]

    def _halves(self, label: int | None) -> tuple[np.ndarray, list[int]]:
        order, count = self._order(label)
        if count == 0:
            MMLogger.get_current_instance().info(
                f'[gap] class {label} has {len(order)} sources: prompts are searched with and '
                'evaluated on the same ones'
            )
        return order[count:], order[: count or None].tolist()

    def _order(self, label: int | None) -> tuple[np.ndarray, int]:
        """Sources in the order of the split, and how many of the first are held out."""
        every = self.sources.of_class(label)
        order = derive_rng(self.seed, 'holdout', str(label)).permutation(every)
        return order, min(self.holdout, len(order) // 3)

    def _of_all_classes(self) -> list[int]:
        """What all classes hold out together; of those that have too few sources nothing."""
        orders = map(self._order, range(len(self.sources.classes)))
        return [source for order, count in orders for source in order[:count].tolist()]

    def _without(self, apart: list[int]) -> tuple[np.ndarray, list[int]]:
        searched = np.setdiff1d(self.sources.of_class(None), apart)
        order = derive_rng(self.seed, 'holdout', 'None').permutation(apart)
        return searched, order[: self.holdout].tolist()


class PromptEvaluator:
    """Draws images of a prompt on held-out sources and evaluates the target on them.

    A source has the same seed for every prompt, so prompts compare image by image. The processes of
    a distributed run share the images, and each gets what all have found.

    Args:
        generator: Draws images.
        target: The model in training.
        sources: Labelled, masked images.
        num_inference_steps: Denoising steps of an image.
        batch_size: Images drawn at a time, by each process.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        target: TargetModel,
        sources: Sources,
        num_inference_steps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.generator = generator
        self.target = target
        self.sources = sources
        self.num_inference_steps = num_inference_steps
        self.batch_size = batch_size
        self.seed = seed

    @torch.no_grad()
    def draw(
        self, prompt: SoftPrompt, held_out: Sequence[int]
    ) -> Iterator[tuple[Condition, Tensor]]:
        """One image per held-out source of this process, in batches of sources and images."""
        held_out = held_out[shard(len(held_out))]
        embeds = self.generator.prompts.encode([prompt])
        for start in range(0, len(held_out), self.batch_size):
            condition = self.sources.load(held_out[start : start + self.batch_size])
            hidden = embeds.expand(len(condition), -1, -1)
            seeds = [self._seed(index) for index in condition.indices]
            yield condition, self.generator(condition, hidden, seeds, self.num_inference_steps)

    def _seed(self, source: int) -> int:
        return derive_seed(self.seed, 'judge', source)  # the salt of all results so far

    def evaluate(self, prompt: SoftPrompt, held_out: Sequence[int]) -> tuple[float, float]:
        """Target's mean loss and accuracy on one image per held-out source.

        Raises:
            NonFiniteLossError: If a loss is NaN or Inf.
        """
        losses, hits = self.per_source(prompt, held_out)
        return sum(losses) / len(losses), sum(hits) / len(hits)

    @torch.no_grad()
    def per_source(
        self, prompt: SoftPrompt, held_out: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        """Target's loss, and 1 where it is right, on one image per held-out source.

        Raises:
            NonFiniteLossError: If a loss is NaN or Inf.
        """
        losses: list[float] = []
        hits: list[float] = []
        with raise_on_all_ranks(NonFiniteLossError):
            for condition, images in self.draw(prompt, held_out):
                output = self._output(prompt, condition, images)
                losses += output.loss.tolist()
                hits += output.hits(condition.truth).tolist()
        return all_gather_list(losses), all_gather_list(hits)

    @torch.no_grad()
    def failure_rate(
        self, prompt: SoftPrompt, chosen: Sequence[int], critic: Critic | None = None
    ) -> float:
        """Share of images, one per source, that the target fails on and the critic would keep.

        Raises:
            NonFiniteLossError: If a loss is NaN or Inf.
        """
        failures: list[float] = []
        with raise_on_all_ranks(NonFiniteLossError):
            for condition, images in self.draw(prompt, chosen):
                wrong = 1 - self._output(prompt, condition, images).hits(condition.truth)
                if critic is not None:
                    agreement = critic(images, condition.masks, condition.truth).tolist()
                    wrong *= torch.tensor([critic.keeps(value) for value in agreement]).to(wrong)
                failures += wrong.tolist()
        return sum(all_gather_list(failures)) / len(chosen)

    def _output(self, prompt: SoftPrompt, condition: Condition, images: Tensor) -> TargetOutput:
        with self.target.frozen():
            output = self.target(images, condition.truth)
        for source, value in zip(condition.indices, output.loss.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f'the loss of prompt {prompt.id} is {value} on held-out source {source} '
                    f'with seed {self._seed(source)}'
                )
        return output

    @torch.no_grad()
    def compare(self, progress: PromptProgress, held_out: Sequence[int]) -> FoundPrompt:
        """The prompt as it is now against how its search started.

        Args:
            progress: The prompt.
            held_out: Sources to draw it with; with none it is not evaluated.
        """
        prompt = progress.prompt
        found = prompt.embeddings.detach().clone()
        after: tuple[float | None, float | None] = (None, None)
        if held_out:
            after = self.evaluate(prompt, held_out)
        before = after
        if held_out and progress.losses:  # else nothing has changed
            try:
                prompt.embeddings.copy_(progress.initial)
                before = self.evaluate(prompt, held_out)
            finally:
                prompt.embeddings.copy_(found)
        return FoundPrompt(
            prompt,
            target_loss_before=before[0],
            target_loss_after=after[0],
            accuracy_before=before[1],
            accuracy_after=after[1],
            steps=len(progress.losses),
            restarts=progress.restarts,
            snapshots={**progress.snapshots, len(progress.losses): found},
        )
