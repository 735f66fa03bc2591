# SPDX-License-Identifier: Apache-2.0
"""Which images a round draws: classes in turn, prompts by their shares, sources in turn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from mmengine import dist
from mmengine.logging import MMLogger

from mmgap.distributed import broadcast_object
from mmgap.feedback import Critic
from mmgap.files import write_json
from mmgap.generators import DiffusionGenerator
from mmgap.generators.evaluations import of_all
from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.search import PromptEvaluator, allocation, failure_rates, round_robin
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import ImageSpec, Sources
from mmgap.synthesis.settings import SynthesisSettings
from mmgap.targets import TargetModel


class Planner:
    """Plans the images of rounds.

    Args:
        generator: Draws images to aim by.
        sources: Labelled samples.
        settings: How to draw.
        critic: What it drops is no failure of the target.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        sources: Sources,
        settings: SynthesisSettings,
        critic: Critic | None = None,
        seed: int = 0,
    ) -> None:
        self.generator = generator
        self.sources = sources
        self.settings = settings
        self.critic = critic
        self.seed = seed

    def plan(
        self,
        prompts: Sequence[SoftPrompt],
        count: int,
        round: int = 0,
        rates: np.ndarray | None = None,
    ) -> list[ImageSpec]:
        """The images of a round; the plan of fewer is the beginning of the plan of more.

        With ``overdraw``, the images of which one is to be kept are of one class and stand
        together. They are those of a plan without it, in another order.

        Args:
            prompts: The prompts.
            count: How many images are to be kept.
            round: The round.
            rates: ``(classes, prompts)``, failure rates to aim by; None for all alike.

        Raises:
            ValueError: If ``count`` is negative or a class has no prompt.
        """
        if count < 0:
            raise ValueError(f'the number of images must not be negative, got {count}')
        classes, each = len(self.sources.classes), self.settings.overdraw
        if each > 1:
            every = self._in_turn(prompts, -(-count // classes) * classes * each, round, rates)
            return [
                every[(unit // classes * each + member) * classes + unit % classes]
                for unit in range(count)
                for member in range(each)
            ]
        return self._in_turn(prompts, count, round, rates)

    def _in_turn(
        self, prompts: Sequence[SoftPrompt], count: int, round: int, rates: np.ndarray | None
    ) -> list[ImageSpec]:
        classes, fitting = len(self.sources.classes), self._fitting(prompts)
        if rates is None:
            rates = np.zeros((classes, len(prompts)))
        turns = [
            round_robin(
                allocation(rates[label, usable].tolist(), self.settings.aim), -(-count // classes)
            )
            for label, usable in enumerate(fitting)
        ]
        decks: list[list[int]] = [[] for _ in range(classes)]
        plan = []
        for place in range(count):
            label, turn = place % classes, place // classes
            if not decks[label]:
                rng = derive_rng(self.seed, 'sources', round, label, turn)
                decks[label] = rng.permutation(self.sources.of_class(label)).tolist()
            prompt_index = fitting[label][turns[label][turn]]
            seed = derive_seed(self.seed, 'synthesis', round, place)
            plan.append(ImageSpec(decks[label].pop(), prompt_index, seed))
        return plan

    def again(self, image: ImageSpec, attempt: int) -> ImageSpec:
        """The same class and prompt with another source and seed."""
        rng = derive_rng(self.seed, 'again', image.seed, attempt)
        fitting = self.sources.of_class(int(self.sources.labels[image.source]))
        source, seed = int(rng.choice(fitting)), int(rng.integers(2**62))
        return ImageSpec(source, image.prompt_index, seed)

    def rates(
        self,
        prompts: Sequence[SoftPrompt],
        prompt_ids: list[str],
        target: TargetModel | None,
        pool: SamplePool,
        round: int = 0,
        known: bool = False,
    ) -> np.ndarray | None:
        """Failure rates to aim by; the same again where a round goes on: the target is.

        Args:
            prompts: The prompts.
            prompt_ids: What the manifest calls them.
            target: The model in training.
            pool: The pool, where the rates of each round are kept in ``aim_ROUND.json``.
            round: The round.
            known: Whether those that this round was planned by before hold, if there are any.

        Returns:
            ``(classes, prompts)``; None without an ``aim``.

        Raises:
            ValueError: If there is an ``aim`` and no target.
        """
        settings = self.settings
        path = pool.folder / f'aim_{round}.json'
        if settings.aim == 0:
            return None
        if known:
            content = json.loads(path.read_text()) if path.exists() else {}
            asked = (content.get('prompts'), content.get('aim_images'))
            same = asked == (prompt_ids, settings.aim_images)
            rates = broadcast_object(np.array(content['rates']) if same else None)
            if rates is not None:
                return rates
        if target is None:
            raise ValueError(f'synthesis aim={settings.aim} needs a target; give a checkpoint')
        counter = self.generator.evaluations
        before = counter.counts()
        rates = self._draw_rates(prompts, target, round)
        content = dict(
            prompts=prompt_ids,
            aim_images=settings.aim_images,
            rates=rates.tolist(),
            evaluations=counter.total_of_all(of_all(counter.since(before))),
        )
        if dist.is_main_process():
            write_json(path, content)
        return rates

    def _draw_rates(
        self, prompts: Sequence[SoftPrompt], target: TargetModel, round: int
    ) -> np.ndarray:
        settings = self.settings
        evaluator = PromptEvaluator(
            self.generator,
            target,
            self.sources,
            num_inference_steps=settings.num_inference_steps,
            batch_size=settings.batch_size,
            seed=derive_seed(self.seed, 'aim', round),
        )
        rates, drawn = np.zeros((len(self.sources.classes), len(prompts))), 0
        for label, usable in enumerate(self._fitting(prompts)):
            rng = derive_rng(self.seed, 'aim', round, label)
            chosen = rng.permutation(self.sources.of_class(label))[: settings.aim_images]
            fitting = [prompts[i] for i in usable]
            ids = [prompt.id for prompt in fitting]
            rates[label, usable] = failure_rates(
                evaluator, fitting, ids, label, chosen.tolist(), self.critic
            )
            drawn += len(chosen) * len(usable)
        MMLogger.get_current_instance().info(f'[gap] {drawn} images drawn to aim, and not kept')
        return rates

    def _fitting(self, prompts: Sequence[SoftPrompt]) -> list[list[int]]:
        """The prompts that each class may be drawn with, in the order of its turns."""
        classes = len(self.sources.classes)
        if self.settings.cross:
            # Two classes take turns in the order of the list, as in all tables so far.
            order = _alternating(prompts) if classes > 2 else [*range(len(prompts))]
            fitting = [_rotated(order, label, classes) for label in range(classes)]
        else:
            fitting = [
                [i for i, p in enumerate(prompts) if p.label in (label, None)]
                for label in range(classes)
            ]
        for label, usable in enumerate(fitting):
            if not usable:
                raise ValueError(
                    f'no prompt for class {self.sources.classes[label]}: with cross=False every '
                    'class needs one'
                )
        return fitting


def _alternating(prompts: Sequence[SoftPrompt]) -> list[int]:
    """Indices of prompts: the first of each class, the second of each, and so on."""
    seen: Counter[int | None] = Counter()
    ranks = []
    for prompt in prompts:
        ranks.append(seen[prompt.label])
        seen[prompt.label] += 1
    return sorted(range(len(prompts)), key=ranks.__getitem__)


def _rotated(order: list[int], label: int, classes: int) -> list[int]:
    """An order from another place on for every two classes.

    If all began alike, few images of many classes would be of the first few prompts. Two draw with
    the same ones, also at the beginning, so that no look tells the class.
    """
    pairs = max(1, classes // 2)
    first = min(label // 2, pairs - 1) * len(order) // pairs
    return order[first:] + order[:first]
