# SPDX-License-Identifier: Apache-2.0
"""Synthesis: prompts x sources -> labelled images in the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmengine import dist
from mmengine.logging import MMLogger

from mmgap.distributed import broadcast_object, gather_list, raise_on_all_ranks, shard
from mmgap.feedback import Critic, Feedback
from mmgap.files import fingerprint, plain, weights_fingerprint
from mmgap.generators import DiffusionGenerator
from mmgap.manifest import Sample
from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.seeds import derive_seed
from mmgap.sources import ImageSpec, Sources
from mmgap.synthesis.drawing import Drawing, RoundContext
from mmgap.synthesis.guidance import SampleGuidance
from mmgap.synthesis.plan import Planner
from mmgap.synthesis.pool_writer import GeneratedImage, PoolWriter
from mmgap.synthesis.progress import Progress
from mmgap.synthesis.selection import choose
from mmgap.synthesis.settings import SynthesisSettings
from mmgap.targets import TargetModel

# Batches of images at most that are held in memory until some are chosen.
MOST = 32
# Where an image is NaN.
ADVICE = (
    'Take another num_inference_steps for synthesis, or another scheduler or eta for the '
    'generator, and go on with --resume: the prompts that were found and the images so far stay'
)


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
        guidance: Steers images while they are drawn.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        sources: Sources,
        settings: SynthesisSettings,
        critic: Critic | None = None,
        seed: int = 0,
        guidance: SampleGuidance | None = None,
    ) -> None:
        self.generator = generator
        self.sources = sources
        self.settings = settings
        self.critic = critic
        self.seed = seed
        self.planner = Planner(generator, sources, settings, critic, seed)
        self._drawing = Drawing(generator, sources, settings, critic, guidance)

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
            The number of images drawn now by all processes, those that are not kept included.

        Raises:
            FloatingPointError: If an image or a loss is NaN or Inf; images before its batch stay.
            OSError: When the disk is full; complete images stay.
            BlockingIOError: If another process writes to the pool.
        """
        prompt_ids = broadcast_object([f'{p.id}@{_content(p)}' for p in prompts])
        if target is None and self.settings.overdraw > 1:
            raise ValueError(
                f'synthesis overdraw={self.settings.overdraw} keeps what is useful to a target, '
                'and there is none; give a checkpoint'
            )
        rates = self.planner.rates(prompts, prompt_ids, target, pool, round, known=keep_drawn)
        overdraw = self.settings.overdraw
        plan = self.planner.plan(prompts, count, round, rates)
        drawing, size = self._drawing.identity(target), self.settings.batch_size
        # Whole selections, that are held in memory until they are chosen from.
        block = overdraw * max(1, min(size, MOST * size // overdraw))
        progress = Progress(len(plan))
        with (
            torch.no_grad(),
            _sole_writer(pool),
            PoolWriter(pool, fingerprint(drawing), drawing) as writer,
        ):
            context = self._context(
                prompts, prompt_ids, round, target, feedback, fingerprint(drawing)
            )
            if keep_drawn:
                context = replace(context, accepted=_similar(drawing, pool.generators))
            position = broadcast_object(sum(sample.round < round for sample in pool.samples))
            for start in range(0, len(plan), block):
                following = plan[start + block :][:block]
                part = plan[start : start + block]
                position = self._draw(part, following, position, context, writer, progress)
                progress.log(min(start + block, len(plan)))
        if dist.is_main_process():
            _keep(pool, lambda place, _: place < position)
        if progress.missing:
            tried = self.settings.attempts if overdraw == 1 else overdraw
            MMLogger.get_current_instance().warning(
                f'[gap] the critic dropped {progress.missing} of {count} images {tried} times; the '
                'pool has so many less than asked for'
            )
        return progress.drawn

    @torch.no_grad()
    def try_out(
        self,
        prompts: Sequence[SoftPrompt],
        target: TargetModel | None = None,
        feedback: Sequence[Feedback] = (),
        count: int = 1,
    ) -> None:
        """Draw and score an image, or several at once; they go nowhere.

        Args:
            prompts: The first one is drawn.
            target: As in :meth:`run`.
            feedback: As in :meth:`run`.
            count: How many.

        Raises:
            FloatingPointError: If the image or a loss is NaN or Inf.
        """
        drawing = fingerprint(self._drawing.identity(target))
        context = self._context(prompts[:1], ['try-out'], 0, target, feedback, drawing)
        # One alone would be compiled for a batch of one.
        count = max(count, 2 if self.generator.compiled else 1)
        seeds = [derive_seed(self.seed, 'try-out', *([i] if i else [])) for i in range(count)]
        images = [ImageSpec(i % len(self.sources), 0, seed) for i, seed in enumerate(seeds)]
        self._drawing(images, context)

    def _context(
        self,
        prompts: Sequence[SoftPrompt],
        prompt_ids: list[str],
        round: int,
        target: TargetModel | None,
        feedback: Sequence[Feedback],
        drawing: str,
    ) -> RoundContext:
        return RoundContext(
            round=round,
            embeds=self.generator.prompts.encode(prompts),
            prompt_ids=prompt_ids,
            turns=[prompt.turn for prompt in prompts],
            generator=broadcast_object(drawing),
            critic=broadcast_object(None if self.critic is None else self.critic.fingerprint()),
            useful_by=broadcast_object(self._useful_by(target, feedback)),
            target=target,
            feedback=feedback,
        )

    def _draw(
        self,
        block: Sequence[ImageSpec],
        following: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        writer: PoolWriter,
        progress: Progress,
    ) -> int:
        """Draw a block of the plan: a batch, or with ``overdraw`` what some are chosen from.

        Without ``overdraw``, what the critic drops of it is drawn again.

        Args:
            block: The images.
            following: Those of the next block, whose sources are read meanwhile.
            position: Where the block begins in the pool.
            context: The round.
            writer: Writes the pool.
            progress: Counts what is drawn, and what stays missing.

        Returns:
            Where the next block begins in the pool.
        """
        overdraw = self.settings.overdraw
        for attempt in range(1, (self.settings.attempts if overdraw == 1 else 1) + 1):
            try:
                kept = self._draw_once(block, following, position, context, writer, progress)
            except FloatingPointError as error:
                advice = '' if 'guidance weight' in str(error) else f'. {ADVICE}'
                raise FloatingPointError(f'{error}{advice}') from error
            position += len(block)
            dropped = [image for image, keeps in zip(block, kept, strict=True) if not keeps]
            if not dropped:
                return position
            # At once, so that the first images of a pool are balanced too.
            block = [self.planner.again(image, attempt) for image in dropped]
        progress.missing += len(dropped) if overdraw == 1 else len(kept) // overdraw - sum(kept)
        return position

    def _draw_once(
        self,
        block: Sequence[ImageSpec],
        following: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        writer: PoolWriter,
        progress: Progress,
    ) -> list[bool]:
        """Draw what the pool lacks of a block, see :meth:`_draw`.

        Returns:
            Which images of the block are kept.
        """
        known: list[bool] = []
        if dist.is_main_process() and writer.length > position:  # of an interrupted run
            known = self._known(block, position, context, writer)
        known = broadcast_object(known)
        if len(known) == len(block):
            return known
        images: list[GeneratedImage] = []
        size = self.settings.batch_size
        # Whole batches again, as in an uninterrupted run: rounding depends on the batch's size.
        for start in range(0, len(block), size):
            batch = block[start : start + size]
            after = block[start + size :][:size] or following[:size]
            part, following_part = batch[shard(len(batch))], after[shard(len(after))]
            self.sources.prefetch([image.source for image in (*part, *following_part)])
            with raise_on_all_ranks(FloatingPointError):
                drawn = self._drawing(part, context) if part else []
            # Whole and in order: the manifest is the same however many have drawn.
            images += gather_list(drawn)
            progress.drawn += len(batch) - max(0, min(len(known) - start, len(batch)))
        kept: list[bool] = []
        if dist.is_main_process():
            kept = self._kept([image.fields for image in images])
            for image, keeps in zip(images, kept, strict=True):
                image.fields['kept'] = keeps
            writer.write(images[len(known) :])
        return broadcast_object(kept)

    def _known(
        self,
        block: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        writer: PoolWriter,
    ) -> list[bool]:
        """Which images the pool holds of a block, and keeps; from the first wrong one, none."""
        writer.wait()
        pool = writer.pool
        _keep(pool, partial(self._wanted, block, position, context))
        samples = pool.samples[position:][: len(block)]
        # A selection is of whole blocks.
        whole = len(samples) == len(block) or not self._selects
        kept = self._kept([vars(sample) for sample in samples]) if whole else []
        # Another threshold or rank would have kept others.
        right = [sample.kept == keeps for sample, keeps in zip(samples, kept, strict=False)]
        first = right.index(False) if False in right else len(right)
        if first < len(samples):
            _keep(pool, lambda place, _: place < position + first)
        writer.length = len(pool)
        return kept[:first]

    def _useful_by(self, target: TargetModel | None, feedback: Sequence[Feedback]) -> str | None:
        if not self._selects or target is None:
            return None
        by_feedback = self.settings.selection.by == 'feedback'
        judges = [target.identity(), [term.settings() for term in feedback if by_feedback]]
        return f'{self.settings.selection.by}@{fingerprint(judges)[:8]}'

    @property
    def _selects(self) -> bool:
        return self.settings.overdraw > 1

    def _kept(self, samples: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which images of a block are trained on, from their fields in the manifest."""
        passes = [self._drawing.passes(sample['agreement']) for sample in samples]
        if not self._selects:
            return passes
        return choose(
            [sample['usefulness'] for sample in samples],
            [(sample['label'], sample['source_group']) for sample in samples],
            passes,
            self.settings.overdraw,
            self.settings.selection.rank,
        )

    def _wanted(
        self,
        block: Sequence[ImageSpec],
        position: int,
        context: RoundContext,
        place: int,
        sample: Sample,
    ) -> bool:
        """Whether a sample of the pool is the planned one; yes outside of the block."""
        if not position <= place < position + len(block):
            return True
        image, recipe = block[place - position], sample.recipe
        planned = self._drawing.recipe(image, context)
        if None in (recipe.source_digest, planned.source_digest):  # of an older pool, or not known
            recipe = replace(recipe, source_digest=planned.source_digest)
        drawn = recipe == planned or (
            sample.generator in context.accepted and recipe.same_plan(planned)
        )
        judged = (sample.critic, sample.useful_by) == (context.critic, context.useful_by)
        return drawn and judged


def _keep(pool: SamplePool, wanted: Callable[[int, Sample], bool]) -> None:
    deleted = pool.keep(wanted)
    if deleted:
        MMLogger.get_current_instance().warning(
            f'[gap] {deleted} images of another plan deleted from {pool.folder}'
        )


@contextmanager
def _sole_writer(pool: SamplePool) -> Iterator[None]:
    with ExitStack() as stack:
        with raise_on_all_ranks(BlockingIOError):
            if dist.is_main_process():
                stack.enter_context(pool.writing())
        yield


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
