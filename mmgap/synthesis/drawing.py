# SPDX-License-Identifier: Apache-2.0
"""Drawing: a batch of the plan becomes images with what is to be known of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmgap.feedback import Critic, Feedback, FeedbackBatch, total_feedback
from mmgap.generators import DiffusionGenerator
from mmgap.manifest import Recipe
from mmgap.sources import Condition, ImageSpec, Sources
from mmgap.synthesis.guidance import SampleGuidance
from mmgap.synthesis.pool_writer import GeneratedImage
from mmgap.synthesis.selection import usefulness
from mmgap.synthesis.settings import SynthesisSettings
from mmgap.targets import TargetModel


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
        useful_by: What the manifest calls the measure of usefulness; None where all are kept.
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
    useful_by: str | None
    target: TargetModel | None
    feedback: Sequence[Feedback]
    accepted: frozenset[str] = frozenset()


class Drawing:
    """Draws and measures batches.

    Args:
        generator: Draws images.
        sources: Labelled samples.
        settings: How to draw.
        critic: Prepared critic.
        guidance: Steers images while they are drawn.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        sources: Sources,
        settings: SynthesisSettings,
        critic: Critic | None,
        guidance: SampleGuidance | None = None,
    ) -> None:
        self.generator = generator
        self.sources = sources
        self.settings = settings
        self.critic = critic
        self.guidance = guidance

    def __call__(self, batch: Sequence[ImageSpec], context: RoundContext) -> list[GeneratedImage]:
        """Draw a batch; what the critic drops is marked so.

        Raises:
            FloatingPointError: If an image or a loss is NaN or Inf.
        """
        condition = self.sources.load([image.source for image in batch])
        indices, seeds = [image.prompt_index for image in batch], [image.seed for image in batch]
        counter = self.generator.evaluations
        hidden, before = context.embeds[indices], counter.counts()
        turns = [context.turns[i] for i in indices]
        seen = FeedbackBatch(hidden, condition.labels, seeds, turns)
        steering = None
        if self.guidance is not None:
            steering = self.guidance.steering(seen, condition, context.target)
        images = seen.images = self.generator(
            condition, hidden, seeds, self.settings.num_inference_steps, steering
        )
        each = counter.total(counter.since(before)) / len(batch)
        measures = self._measure(condition, images, seen, context)
        _check_finite(batch, images, measures)
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        generated = []
        for i, image in enumerate(batch):
            own = {name: values[i] for name, values in measures.items()}
            fields = dict(
                asdict(self.recipe(image, context)),
                group=None,
                source_group=self.sources.groups[image.source],
                label_name=self._class_of(image),
                critic=context.critic,
                kept=self.passes(own['agreement']),
                useful_by=context.useful_by,
                evaluations=round(each, 6),
                **own,
            )
            depth = self.sources.stored_depth(condition, i)
            generated.append(GeneratedImage(pixels[i], depth, fields))
        return generated

    def _class_of(self, image: ImageSpec) -> str | None:
        """The name that the data have for it, if they have names."""
        if self.sources.label_type != 'classes':
            return None
        names = self.sources.dataset.metainfo.get('classes')
        return names[int(self.sources.labels[image.source])] if names else None

    def identity(self, target: TargetModel | None) -> dict[str, Any]:
        """What decides images beside their recipes, as plain data."""
        settings = self.generator.settings()
        if self.guidance is None:
            return settings
        return dict(settings, guidance=self.guidance.identity(target))

    def recipe(self, image: ImageSpec, context: RoundContext) -> Recipe:
        """What decides an image of the plan."""
        return Recipe(
            round=context.round,
            source_index=image.source,
            label=int(self.sources.labels[image.source]),
            seed=image.seed,
            prompt_id=context.prompt_ids[image.prompt_index],
            depth_unit=self.sources.unit,
            generator=context.generator,
            num_inference_steps=self.settings.num_inference_steps,
            source_digest=self.sources.digest(image.source),
        )

    def passes(self, agreement: float | None) -> bool:
        """Whether the critic lets an image with this agreement pass."""
        return self.critic is None or agreement is None or self.critic.keeps(agreement)

    def _measure(
        self, condition: Condition, images: Tensor, seen: FeedbackBatch, context: RoundContext
    ) -> dict[str, list[Any]]:
        """Losses, agreement and usefulness of a batch, for the manifest."""
        names = ('target_loss_source', 'target_loss_image', 'feedback', 'agreement', 'usefulness')
        measures: dict[str, list[Any]] = {name: [None] * len(condition) for name in names}
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
        total = total_feedback(looking, seen).loss if looking else None
        measures['target_loss_source'] = source.loss.tolist()
        measures['target_loss_image'] = seen.output.loss.tolist()
        if total is not None:
            measures['feedback'] = total.tolist()
        if context.useful_by is not None:
            useful = usefulness(seen.output, condition.truth, total, self.settings.selection.by)
            measures['usefulness'] = useful.tolist()
        return measures


def _check_finite(
    batch: Sequence[ImageSpec], images: Tensor, measures: dict[str, list[Any]]
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
