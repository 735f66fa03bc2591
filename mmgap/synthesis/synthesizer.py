# SPDX-License-Identifier: Apache-2.0
"""Synthesis: prompts x sources -> labelled images in the pool."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import MMLogger
from torch import Tensor

from mmgap.distributed import broadcast_object, gather_list, raise_on_all_ranks, shard
from mmgap.feedback import Critic, Feedback, FeedbackBatch, total_feedback
from mmgap.files import fingerprint, plain, weights_fingerprint, write_json
from mmgap.pool import Sample, SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.search import PromptEvaluator, allocation, round_robin
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import Condition, SourceSet
from mmgap.synthesis.pool_writer import PoolWriter
from mmgap.synthesis.progress import Progress
from mmgap.targets import TargetModel

# Where an image is NaN.
ADVICE = (
    'Take another num_inference_steps for synthesis, or another scheduler or eta for the '
    'generator, and go on with --resume: the prompts that were found and the images so far stay'
)


@dataclass(frozen=True)
class Drawing:
    """One image to draw: which source, which prompt, which seed."""

    source: int
    prompt: int
    seed: int


@dataclass(frozen=True)
class _Work:
    """What all batches of a round share."""

    embeds: Tensor
    names: list[str]
    numbers: list[int]
    generator: str
    critic: str | None
    round: int
    # Other generators whose images stay if they are planned ones.
    accepted: frozenset[str]


class Synthesizer:
    """Draw images with found prompts into a pool.

    The processes of a distributed run share each batch; the main one writes.

    Args:
        generator: Draws images.
        sources: Labelled, masked images.
        num_inference_steps: Denoising steps of an image.
        batch_size: Images drawn at a time, by all processes together: each image's last bits
            depend on it. With fewer than processes, some have nothing to do.
        cross: Draw every prompt with sources of all classes. False draws a prompt only with the
            class that it was searched for, which makes the look of generated images predict the
            label.
        aim: Part of a class's images that its prompts share in proportion to how often the target
            fails on their images of this class; the rest goes to all prompts alike. 0 asks no
            target.
        aim_images: Images per prompt and class that are drawn to find that out, and not kept.
        critic: Prepared :class:`~mmgap.feedback.Critic`; what it drops is drawn again with another
            source and seed.
        attempts: How often an image may be drawn until the critic keeps it.
        seed: Seed of every draw.

    Raises:
        ValueError: If a count is not positive.
    """

    def __init__(
        self,
        generator: Any,
        sources: SourceSet,
        num_inference_steps: int = 15,
        batch_size: int = 8,
        cross: bool = True,
        aim: float = 0.0,
        aim_images: int = 8,
        critic: Critic | None = None,
        attempts: int = 4,
        seed: int = 0,
    ) -> None:
        counts = dict(num_inference_steps=num_inference_steps, batch_size=batch_size)
        for name, value in dict(counts, aim_images=aim_images, attempts=attempts).items():
            if value < 1:
                raise ValueError(f'synthesis {name} must be at least 1, got {value}')
        if not 0 <= aim <= 1:
            raise ValueError(f'synthesis aim must be in [0, 1], got {aim}')
        self.generator = generator
        self.sources = sources
        self.num_inference_steps = num_inference_steps
        self.batch_size = batch_size
        self.cross = cross
        self.aim = aim
        self.aim_images = aim_images
        self.critic = critic
        self.attempts = attempts
        self.seed = seed

    def plan(
        self,
        prompts: Sequence[SoftPrompt],
        count: int,
        round: int = 0,
        rates: np.ndarray | None = None,
    ) -> list[Drawing]:
        """Which images to draw: classes in turn, then prompts by their shares, sources in turn.

        The plan of fewer images is the beginning of the plan of more.

        Args:
            prompts: The prompts.
            count: How many images.
            round: Number of the round.
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
            round_robin(allocation(rates[label, usable], self.aim), -(-count // classes))
            for label, usable in enumerate(fitting)
        ]
        decks: list[list[int]] = [[] for _ in range(classes)]
        plan = []
        for number in range(count):
            label, turn = number % classes, number // classes
            if not decks[label]:
                rng = derive_rng(self.seed, 'sources', round, label, turn)
                decks[label] = rng.permutation(self.sources.of_class(label)).tolist()
            prompt = fitting[label][turns[label][turn]]
            seed = derive_seed(self.seed, 'synthesis', round, number)
            plan.append(Drawing(decks[label].pop(), prompt, seed))
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
        names = broadcast_object([f'{p.id}@{_content(p)}' for p in prompts])
        rates = self._known_rates(names, pool, round) if keep_drawn else None
        if rates is None:
            rates = self._rates(prompts, target, round)
            self._write_rates(rates, names, pool, round)
        plan = self.plan(prompts, count, round, rates)
        position = broadcast_object(sum(sample.round < round for sample in pool.samples))
        progress = Progress(len(plan))
        about = self.generator.about()
        with torch.no_grad(), PoolWriter(pool, fingerprint(about), about) as writer:
            work = self._work(prompts, names, about, round)
            if keep_drawn:
                work = replace(work, accepted=_alike(about, pool.generators))
            for start in range(0, len(plan), self.batch_size):
                batch = plan[start : start + self.batch_size]
                following = plan[start + self.batch_size :][: self.batch_size]
                for attempt in range(1, self.attempts + 1):
                    try:
                        made, kept = self._draw(
                            batch, following, position, work, writer, target, feedback
                        )
                    except FloatingPointError as error:
                        raise FloatingPointError(f'{error}. {ADVICE}') from error
                    progress.drawn += made
                    position += len(batch)
                    failed = [d for d, good in zip(batch, kept, strict=True) if not good]
                    if not failed or attempt == self.attempts:
                        break
                    # At once, so that the first images of a pool are balanced too.
                    batch = [self._again(drawing, attempt) for drawing in failed]
                progress.missing += len(failed)
                progress.log(min(start + self.batch_size, len(plan)))
        if dist.is_main_process():
            self._keep(pool, lambda number, _: number < position)
        if progress.missing:
            MMLogger.get_current_instance().warning(
                f'[gap] the critic dropped {progress.missing} of {count} images {self.attempts} '
                'times; the pool has so many less than asked for'
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
        work = self._work(prompts[:1], ['try-out'], self.generator.about(), 0)
        drawing = Drawing(0, 0, derive_seed(self.seed, 'try-out'))
        # One alone would be compiled for a batch of one.
        self._make([drawing] * (2 if self.generator.compiled else 1), work, target, feedback)

    def _work(
        self,
        prompts: Sequence[SoftPrompt],
        names: list[str],
        about: Mapping[str, Any],
        round: int,
    ) -> _Work:
        generator = broadcast_object(fingerprint(about))
        return _Work(
            embeds=self.generator.prompts.encode(prompts),
            numbers=[p.number for p in prompts],
            names=names,
            generator=generator,
            critic=broadcast_object(self.critic.fingerprint() if self.critic is not None else None),
            round=round,
            accepted=frozenset(),
        )

    def _known_rates(self, names: list[str], pool: SamplePool, round: int) -> np.ndarray | None:
        """Failure rates that this round was planned by, if it was."""
        path = pool.folder / f'aim_{round}.json'
        known = json.loads(path.read_text()) if path.exists() and self.aim else {}
        alike = known.get('prompts') == names and known.get('aim_images') == self.aim_images
        return broadcast_object(np.array(known['rates']) if alike else None)

    def _write_rates(
        self, rates: np.ndarray | None, names: list[str], pool: SamplePool, round: int
    ) -> None:
        if rates is not None and dist.is_main_process():
            about = dict(prompts=names, aim_images=self.aim_images, rates=rates.tolist())
            write_json(pool.folder / f'aim_{round}.json', about)

    def _rates(
        self, prompts: Sequence[SoftPrompt], target: TargetModel | None, round: int
    ) -> np.ndarray | None:
        """Failure rates to aim by. The same again where a round goes on: the target is."""
        if self.aim == 0:
            return None
        if target is None:
            raise ValueError(f'synthesis aim={self.aim} needs a target; give a checkpoint')
        settings = (self.num_inference_steps, self.batch_size, derive_seed(self.seed, 'aim', round))
        evaluator = PromptEvaluator(self.generator, target, self.sources, *settings)
        rates, drawn = np.zeros((len(self.sources.classes), len(prompts))), 0
        for label, usable in enumerate(self._fitting(prompts)):
            rng = derive_rng(self.seed, 'aim', round, label)
            chosen = rng.permutation(self.sources.of_class(label))[: self.aim_images]
            for i in usable:
                rates[label, i] = evaluator.failure_rate(prompts[i], chosen, self.critic)
                drawn += len(chosen)
            said = ', '.join(f'{prompts[i].id} {rates[label, i]:.2f}' for i in usable)
            name = self.sources.classes[label]
            MMLogger.get_current_instance().info(f'[gap] the target fails on {name}: {said}')
        MMLogger.get_current_instance().info(f'[gap] {drawn} images drawn to aim, and not kept')
        return rates

    def _fitting(self, prompts: Sequence[SoftPrompt]) -> list[list[int]]:
        """The prompts that each class may be drawn with."""
        fitting = [
            [i for i, p in enumerate(prompts) if self.cross or p.label in (label, None)]
            for label in range(len(self.sources.classes))
        ]
        for label, usable in enumerate(fitting):
            if not usable:
                raise ValueError(
                    f'no prompt for class {self.sources.classes[label]}: with cross=False every '
                    'class needs one'
                )
        return fitting

    def _again(self, drawing: Drawing, attempt: int) -> Drawing:
        """The same class and prompt with another source and seed."""
        rng = derive_rng(self.seed, 'again', drawing.seed, attempt)
        fitting = self.sources.of_class(int(self.sources.labels[drawing.source]))
        return Drawing(int(rng.choice(fitting)), drawing.prompt, int(rng.integers(2**62)))

    def _draw(
        self,
        batch: Sequence[Drawing],
        following: Sequence[Drawing],
        position: int,
        work: _Work,
        writer: PoolWriter,
        target: TargetModel | None,
        feedback: Sequence[Feedback],
    ) -> tuple[int, list[bool]]:
        """Draw what the pool lacks of a batch that begins at ``position``.

        Meanwhile the sources of the batch that follows are read.

        Returns:
            How many were drawn, and which images of the batch the critic keeps.
        """

        def wanted(number: int, sample: Sample) -> bool:
            if not position <= number < position + len(batch):
                return True
            drawing = batch[number - position]
            label = int(self.sources.labels[drawing.source])
            what = (drawing.source, label, drawing.seed, work.names[drawing.prompt])
            alike = sample.planned() == (work.round, *what, self.sources.unit)
            drawn_alike = (sample.generator, sample.num_inference_steps) == (
                work.generator,
                self.num_inference_steps,
            )
            return (
                alike
                and (drawn_alike or sample.generator in work.accepted)
                and self._judged_alike(sample, work.critic)
            )

        known: list[bool] = []
        if dist.is_main_process() and writer.length > position:  # of an interrupted run
            writer.wait()
            self._keep(writer.pool, wanted)
            writer.length = len(writer.pool)
            known = [sample.kept for sample in writer.pool.samples[position:][: len(batch)]]
        known = broadcast_object(known)
        done = len(known)
        if done == len(batch):
            return 0, known
        # The whole batch again, as in an uninterrupted run: rounding depends on the batch's size.
        part, later = (some[shard(len(some))] for some in (batch, following))
        self.sources.prefetch([drawing.source for drawing in (*part, *later)])
        with raise_on_all_ranks(FloatingPointError):
            made = self._make(part, work, target, feedback) if part else []
        # Whole and in order: the manifest is the same however many have drawn.
        new = gather_list(made)[done:]
        if dist.is_main_process():
            writer.write(new)
        return len(batch) - done, known + broadcast_object([about['kept'] for _, _, about in new])

    def _make(
        self,
        batch: Sequence[Drawing],
        work: _Work,
        target: TargetModel | None,
        feedback: Sequence[Feedback],
    ) -> list[tuple[np.ndarray, np.ndarray | None, dict[str, Any]]]:
        """Draw and judge images: what :meth:`SamplePool.append` is told of each."""
        condition = self.sources.load([drawing.source for drawing in batch])
        hidden = work.embeds[[drawing.prompt for drawing in batch]]
        seeds = [drawing.seed for drawing in batch]
        images = self.generator(condition, hidden, seeds, self.num_inference_steps)
        numbers = [work.numbers[drawing.prompt] for drawing in batch]
        draft = FeedbackBatch(hidden, condition.labels, seeds, numbers, images)
        judged = self._judge(condition, draft, target, feedback)
        self._check_finite(batch, images, judged)
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        made = []
        for i, drawing in enumerate(batch):
            about = dict(
                label=int(condition.labels[i]),
                group=None,
                source_index=drawing.source,
                source_group=self.sources.groups[drawing.source],
                seed=drawing.seed,
                prompt_id=work.names[drawing.prompt],
                generator=work.generator,
                num_inference_steps=self.num_inference_steps,
                round=work.round,
                critic=work.critic,
                kept=self.critic is None or self.critic.keeps(judged['agreement'][i]),
                depth_unit=self.sources.unit,
                **{name: values[i] for name, values in judged.items()},
            )
            made.append((pixels[i], self.sources.stored_depth(condition, i), about))
        return made

    @staticmethod
    def _keep(pool: SamplePool, wanted: Callable[[int, Sample], bool]) -> None:
        deleted = pool.keep(wanted)
        if deleted:
            MMLogger.get_current_instance().warning(
                f'[gap] {deleted} images of another plan deleted from {pool.folder}'
            )

    def _judged_alike(self, sample: Sample, critic: str | None) -> bool:
        """Whether the critic would decide as the pool says that it was decided."""
        if sample.critic != critic:
            return False
        return critic is None or sample.kept == self.critic.keeps(sample.agreement)

    def _judge(
        self,
        condition: Condition,
        draft: FeedbackBatch,
        target: TargetModel | None,
        feedback: Sequence[Feedback],
    ) -> dict[str, list[float | None]]:
        """Losses of a batch, for the manifest."""
        unknown: list[float | None] = [None] * len(condition)
        names = ('target_loss_source', 'target_loss_image', 'feedback', 'agreement')
        judged = dict.fromkeys(names, unknown)
        if self.critic is not None:
            agreement = self.critic(draft.images, condition.masks, condition.truth)
            judged['agreement'] = agreement.tolist()
        if target is None:
            return judged
        with target.frozen():
            source = target(condition.images.float() / 255, condition.truth)
            image = draft.output = target(draft.images, condition.truth)
        seeing = [term for term in feedback if term.needs != 'prompt']
        total = total_feedback(seeing, draft).loss
        return dict(
            judged,
            target_loss_source=source.loss.tolist(),
            target_loss_image=image.loss.tolist(),
            feedback=total.tolist() if seeing else unknown,
        )

    @staticmethod
    def _check_finite(
        batch: Sequence[Drawing], images: Tensor, judged: dict[str, list[float | None]]
    ) -> None:
        finite = torch.isfinite(images).flatten(1).all(dim=1).tolist()
        for i, drawing in enumerate(batch):
            values = {name: column[i] for name, column in judged.items()}
            if finite[i] and all(v is None or math.isfinite(v) for v in values.values()):
                continue
            what = f'gave {values}' if finite[i] else 'has pixels that are NaN or Inf'
            raise FloatingPointError(
                f'the image of source {drawing.source} with seed {drawing.seed} {what}; it is not '
                'in the pool'
            )


def _content(prompt: SoftPrompt) -> str:
    """Eight hex digits that name what a prompt says, whatever its id."""
    parts = [weights_fingerprint(prompt), prompt.template, prompt.joiner]
    return fingerprint(parts)[:8]


def _alike(about: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The generator itself and those that differ from it in scheduler and eta at most."""
    own = plain(about)
    settings = {fingerprint(about): own, **known}
    return frozenset(
        name
        for name, other in settings.items()
        if all(other.get(key) == own.get(key) for key in {*other, *own} - {'scheduler', 'eta'})
    )
