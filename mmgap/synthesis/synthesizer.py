# SPDX-License-Identifier: Apache-2.0
"""Synthesis: prompts x sources -> labelled images in the pool."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import MMLogger
from torch import Tensor

from mmgap.distributed import broadcast_object, gather_list, raise_on_all_ranks, shard
from mmgap.feedback import Critic, Feedback, FeedbackBatch, total_feedback
from mmgap.files import fingerprint, plain, weights_fingerprint, write_json
from mmgap.generators import DiffusionGenerator
from mmgap.pool import Recipe, Sample, SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.search import PromptEvaluator, allocation, failure_rates, round_robin
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import Condition, ImageSpec, Sources
from mmgap.synthesis.pool_writer import GeneratedImage, PoolWriter
from mmgap.synthesis.progress import Progress
from mmgap.synthesis.settings import SynthesisSettings
from mmgap.targets import TargetModel

# Where an image is NaN.
ADVICE = (
    'Take another num_inference_steps for synthesis, or another scheduler or eta for the '
    'generator, and go on with --resume: the prompts that were found and the images so far stay'
)


@dataclass(frozen=True)
class RoundContext:
    """What all batches of a round share.

    Attributes:
        round: The round.
        embeds: ``(prompts, length, width)``, hidden states of the prompts.
        prompt_ids: What the manifest calls them.
        turns: Their turns.
        generator: Fingerprint of the generator.
        critic: Fingerprint of the critic; None without one.
        target: The model in training; None where nothing of it goes into the manifest.
        feedback: Prepared terms.
        accepted: Fingerprints of generators whose images stay if they are planned ones.
    """

    round: int
    embeds: Tensor
    prompt_ids: list[str]
    turns: list[int]
    generator: str
    critic: str | None
    target: TargetModel | None
    feedback: Sequence[Feedback]
    accepted: frozenset[str] = frozenset()


class Synthesizer:
    """Draw images with found prompts into a pool.

    The processes of a distributed run share each batch; the main one writes.

    Args:
        generator: Draws images.
        sources: Labelled samples.
        settings: How to draw.
        critic: Prepared :class:`~mmgap.feedback.Critic`; what it drops is drawn again with another
            source and seed.
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
        """Which images to draw: classes in turn, then prompts by their shares, sources in turn.

        The plan of fewer images is the beginning of the plan of more.

        Args:
            prompts: The prompts.
            count: How many images.
            round: The round.
            rates: ``(classes, prompts)``, failure rates to aim by; None for all alike.

        Raises:
            ValueError: If ``count`` is negative or a class has no prompt.
        """
        if count < 0:
            raise ValueError(f'the number of images must not be negative, got {count}')
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

    def run(
        self,
        prompts: Sequence[SoftPrompt],
        count: int,
        pool: SamplePool,
        target: TargetModel | None = None,
        feedback: Sequence[Feedback] = (),
        round: int = 0,
        keep_drawn: bool = False,
    ) -> int:
        """Draw ``count`` images of a round; goes on where an interrupted run stopped.

        Images that the pool already holds of this round stay if they are the planned ones; from
        the first that is not, they are dropped and drawn again. While a batch is drawn, the one
        before is written.

        Args:
            prompts: Found prompts.
            count: Images of this round.
            pool: Where they go. Everything after this round in it is dropped.
            target: The model in training, whose losses go into the manifest.
            feedback: Prepared terms; the weighted sum of those that look at the image goes into
                the manifest.
            round: Number of the round.
            keep_drawn: Whether planned images stay that were drawn with another number of steps,
                or another scheduler or eta of the generator: those that an interrupted run has
                paid for, whatever was changed since. The manifest says what drew each.

        Returns:
            The number of images drawn now by all processes, those that the critic dropped included.

        Raises:
            FloatingPointError: If an image or a loss is NaN or Inf; images before its batch stay.
            OSError: When the disk is full; complete images stay.
        """
        prompt_ids = broadcast_object([f'{p.id}@{_content(p)}' for p in prompts])
        rates = self._known_rates(prompt_ids, pool, round) if keep_drawn else None
        if rates is None:
            rates = self._rates(prompts, target, round)
            self._write_rates(rates, prompt_ids, pool, round)
        plan = self.plan(prompts, count, round, rates)
        drawing, size = self.generator.settings(), self.settings.batch_size
        progress = Progress(len(plan))
        with torch.no_grad(), PoolWriter(pool, fingerprint(drawing), drawing) as writer:
            context = self._context(prompts, prompt_ids, round, target, feedback)
            if keep_drawn:
                context = replace(context, accepted=_similar(drawing, pool.generators))
            position = broadcast_object(sum(sample.round < round for sample in pool.samples))
            for start in range(0, len(plan), size):
                following = plan[start + size :][:size]
                batch = plan[start : start + size]
                position = self._draw(batch, following, position, context, writer, progress)
                progress.log(min(start + size, len(plan)))
        if dist.is_main_process():
            _keep(pool, lambda place, _: place < position)
        if progress.missing:
            MMLogger.get_current_instance().warning(
                f'[gap] the critic dropped {progress.missing} of {count} images '
                f'{self.settings.attempts} times; the pool has so many less than asked for'
            )
        return progress.drawn

    @torch.no_grad()
    def try_out(
        self,
        prompts: Sequence[SoftPrompt],
        target: TargetModel | None = None,
        feedback: Sequence[Feedback] = (),
    ) -> None:
        """Draw and score one image; it goes nowhere. Arguments as in :meth:`run`.

        Raises:
            FloatingPointError: If the image or a loss is NaN or Inf.
        """
        context = self._context(prompts[:1], ['try-out'], 0, target, feedback)
        image = ImageSpec(0, 0, derive_seed(self.seed, 'try-out'))
        # One alone would be compiled for a batch of one.
        self._generate([image] * (2 if self.generator.compiled else 1), context)

    def _context(
        self,
        prompts: Sequence[SoftPrompt],
        prompt_ids: list[str],
        round: int,
        target: TargetModel | None,
        feedback: Sequence[Feedback],
    ) -> RoundContext:
        return RoundContext(
            round=round,
            embeds=self.generator.prompts.encode(prompts),
            prompt_ids=prompt_ids,
            turns=[prompt.turn for prompt in prompts],
            generator=broadcast_object(self.generator.fingerprint()),
            critic=broadcast_object(None if self.critic is None else self.critic.fingerprint()),
            target=target,
            feedback=feedback,
        )

    def _known_rates(
        self, prompt_ids: list[str], pool: SamplePool, round: int
    ) -> np.ndarray | None:
        """Failure rates that this round was planned by, if it was."""
        path, settings = pool.folder / f'aim_{round}.json', self.settings
        known = json.loads(path.read_text()) if path.exists() and settings.aim else {}
        same = (known.get('prompts'), known.get('aim_images')) == (prompt_ids, settings.aim_images)
        return broadcast_object(np.array(known['rates']) if same else None)

    def _write_rates(
        self, rates: np.ndarray | None, prompt_ids: list[str], pool: SamplePool, round: int
    ) -> None:
        if rates is not None and dist.is_main_process():
            content = dict(
                prompts=prompt_ids, aim_images=self.settings.aim_images, rates=rates.tolist()
            )
            write_json(pool.folder / f'aim_{round}.json', content)

    def _rates(
        self, prompts: Sequence[SoftPrompt], target: TargetModel | None, round: int
    ) -> np.ndarray | None:
        """Failure rates to aim by. The same again where a round goes on: the target is."""
        settings = self.settings
        if settings.aim == 0:
            return None
        if target is None:
            raise ValueError(f'synthesis aim={settings.aim} needs a target; give a checkpoint')
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
        """The prompts that each class may be drawn with."""
        fitting = [
            [i for i, p in enumerate(prompts) if self.settings.cross or p.label in (label, None)]
            for label in range(len(self.sources.classes))
        ]
        for label, usable in enumerate(fitting):
            if not usable:
                raise ValueError(
                    f'no prompt for class {self.sources.classes[label]}: with cross=False every '
                    'class needs one'
                )
        return fitting

    def _again(self, image: ImageSpec, attempt: int) -> ImageSpec:
        """The same class and prompt with another source and seed."""
        rng = derive_rng(self.seed, 'again', image.seed, attempt)
        fitting = self.sources.of_class(int(self.sources.labels[image.source]))
        source, seed = int(rng.choice(fitting)), int(rng.integers(2**62))
        return ImageSpec(source, image.prompt_index, seed)

    def _draw(
        self,
        batch: Sequence[ImageSpec],
        following: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        writer: PoolWriter,
        progress: Progress,
    ) -> int:
        """Draw a batch, and again what the critic drops of it.

        Args:
            batch: The images.
            following: Those of the next batch, whose sources are read meanwhile.
            position: Where the batch begins in the pool.
            context: The round.
            writer: Writes the pool.
            progress: Counts what is drawn, and what stays missing.

        Returns:
            Where the next batch begins in the pool.
        """
        for attempt in range(1, self.settings.attempts + 1):
            try:
                kept = self._draw_once(batch, following, position, context, writer, progress)
            except FloatingPointError as error:
                raise FloatingPointError(f'{error}. {ADVICE}') from error
            position += len(batch)
            dropped = [image for image, keeps in zip(batch, kept, strict=True) if not keeps]
            if not dropped:
                return position
            # At once, so that the first images of a pool are balanced too.
            batch = [self._again(image, attempt) for image in dropped]
        progress.missing += len(dropped)
        return position

    def _draw_once(
        self,
        batch: Sequence[ImageSpec],
        following: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        writer: PoolWriter,
        progress: Progress,
    ) -> list[bool]:
        """Draw what the pool lacks of a batch, see :meth:`_draw`.

        Returns:
            Which images of the batch the critic keeps.
        """
        known: list[bool] = []
        if dist.is_main_process() and writer.length > position:  # of an interrupted run
            writer.wait()
            _keep(writer.pool, partial(self._wanted, batch, position, context))
            writer.length = len(writer.pool)
            known = [sample.kept for sample in writer.pool.samples[position:][: len(batch)]]
        known = broadcast_object(known)
        if len(known) == len(batch):
            return known
        # The whole batch again, as in an uninterrupted run: rounding depends on the batch's size.
        part, following_part = batch[shard(len(batch))], following[shard(len(following))]
        self.sources.prefetch([image.source for image in (*part, *following_part)])
        with raise_on_all_ranks(FloatingPointError):
            images = self._generate(part, context) if part else []
        # Whole and in order: the manifest is the same however many have drawn.
        new = gather_list(images)[len(known) :]
        if dist.is_main_process():
            writer.write(new)
        progress.drawn += len(batch) - len(known)
        return known + broadcast_object([image.fields['kept'] for image in new])

    def _wanted(
        self,
        batch: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        place: int,
        sample: Sample,
    ) -> bool:
        """Whether a sample of the pool is the planned one; yes outside of the batch."""
        if not position <= place < position + len(batch):
            return True
        image, recipe = batch[place - position], sample.recipe
        planned = self._recipe(image, context)
        drawn = recipe == planned or (
            sample.generator in context.accepted and recipe.same_plan(planned)
        )
        return drawn and self._same_critic(sample, context.critic)

    def _recipe(self, image: ImageSpec, context: RoundContext) -> Recipe:
        return Recipe(
            round=context.round,
            source_index=image.source,
            label=int(self.sources.labels[image.source]),
            seed=image.seed,
            prompt_id=context.prompt_ids[image.prompt_index],
            depth_unit=self.sources.unit,
            generator=context.generator,
            num_inference_steps=self.settings.num_inference_steps,
        )

    def _same_critic(self, sample: Sample, critic: str | None) -> bool:
        """Whether this critic would keep or drop the sample as the pool has it."""
        if sample.critic != critic:
            return False
        if self.critic is None or sample.agreement is None:
            return True
        return sample.kept == self.critic.keeps(sample.agreement)

    def _generate(self, batch: Sequence[ImageSpec], context: RoundContext) -> list[GeneratedImage]:
        """Draw images and measure them."""
        condition = self.sources.load([image.source for image in batch])
        indices, seeds = [image.prompt_index for image in batch], [image.seed for image in batch]
        hidden = context.embeds[indices]
        images = self.generator(condition, hidden, seeds, self.settings.num_inference_steps)
        turns = [context.turns[i] for i in indices]
        seen = FeedbackBatch(hidden, condition.labels, seeds, turns, images)
        measures = self._measure(condition, images, seen, context)
        self._check_finite(batch, images, measures)
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        generated = []
        for i, image in enumerate(batch):
            own = {name: values[i] for name, values in measures.items()}
            agreement = own['agreement']
            fields = dict(
                asdict(self._recipe(image, context)),
                group=None,
                source_group=self.sources.groups[image.source],
                critic=context.critic,
                kept=self.critic is None or agreement is None or self.critic.keeps(agreement),
                **own,
            )
            depth = self.sources.stored_depth(condition, i)
            generated.append(GeneratedImage(pixels[i], depth, fields))
        return generated

    def _measure(
        self, condition: Condition, images: Tensor, seen: FeedbackBatch, context: RoundContext
    ) -> dict[str, list[float | None]]:
        """Losses and agreement of a batch, for the manifest."""
        unknown: list[float | None] = [None] * len(condition)
        names = ('target_loss_source', 'target_loss_image', 'feedback', 'agreement')
        measures = dict.fromkeys(names, unknown)
        if self.critic is not None:
            agreement = self.critic(images, condition.masks, condition.truth)
            measures['agreement'] = agreement.tolist()
        target = context.target
        if target is None:
            return measures
        with target.frozen():
            source = target(condition.images.float() / 255, condition.truth)
            seen.output = target(images, condition.truth)
        looking = [term for term in context.feedback if term.needs != 'prompt']
        total = total_feedback(looking, seen).loss
        return dict(
            measures,
            target_loss_source=source.loss.tolist(),
            target_loss_image=seen.output.loss.tolist(),
            feedback=total.tolist() if looking else unknown,
        )

    @staticmethod
    def _check_finite(
        batch: Sequence[ImageSpec], images: Tensor, measures: dict[str, list[float | None]]
    ) -> None:
        finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
        for i, image in enumerate(batch):
            values = {name: column[i] for name, column in measures.items()}
            if finite[i] and all(v is None or math.isfinite(v) for v in values.values()):
                continue
            problem = f'gave {values}' if finite[i] else 'has pixels that are NaN or Inf'
            raise FloatingPointError(
                f'the image of source {image.source} with seed {image.seed} {problem}; it is not '
                'in the pool'
            )


def _keep(pool: SamplePool, wanted: Callable[[int, Sample], bool]) -> None:
    deleted = pool.keep(wanted)
    if deleted:
        MMLogger.get_current_instance().warning(
            f'[gap] {deleted} images of another plan deleted from {pool.folder}'
        )


def _content(prompt: SoftPrompt) -> str:
    """Eight hex digits that name what a prompt says, whatever its id."""
    parts = [weights_fingerprint(prompt), prompt.template, prompt.joiner]
    return fingerprint(parts)[:8]


def _similar(drawing: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The generator itself and those that differ from it in scheduler and eta at most."""
    own = plain(drawing)
    settings = {fingerprint(drawing): own, **known}
    return frozenset(
        name
        for name, other in settings.items()
        if all(other.get(key) == own.get(key) for key in {*other, *own} - {'scheduler', 'eta'})
    )
