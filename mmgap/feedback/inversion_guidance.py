# SPDX-License-Identifier: Apache-2.0
"""Guidance by textual inversion: prompts that the generator would draw the guidance images with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgap.feedback.base import Feedback, FeedbackBatch, prepared
from mmgap.feedback.guidance_images import GuidanceImages
from mmgap.generators import DiffusionGenerator
from mmgap.registry import TASK_UTILS
from mmgap.seeds import derive_rng


@TASK_UTILS.register_module()
class InversionGuidance(Feedback):
    """The textual-inversion loss on guidance images (arXiv 2208.01618, equation 2).

    For each image of a step one guidance image is drawn, noise is added to it at a random timestep,
    and the loss is the generator's error in telling that noise under the prompt. It needs no
    generated image.

    Args:
        images: Folder or dataset config, see :class:`~mmgap.feedback.GuidanceImages`.
        limit: Take only the first so many images.
        skip_corrupt: Leave images out that cannot be read.
        **kwargs: As for :class:`~mmgap.feedback.base.Feedback`.
    """

    needs = 'prompt'

    def __init__(
        self,
        images: str | Mapping[str, Any],
        limit: int | None = None,
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.images = images
        self.limit = limit
        self.skip_corrupt = skip_corrupt
        self.contents: str | None = None
        self._targets: GuidanceImages | None = None
        self._generator: DiffusionGenerator | None = None

    def prepare(
        self, generator: DiffusionGenerator, classes: Sequence[str], cache: Path | None = None
    ) -> None:
        """Read the guidance images.

        Raises:
            ValueError: If there are no images, one cannot be read, or they are labelled.
        """
        self._generator = generator
        if self._targets is None:
            self._targets = GuidanceImages(self.images, self.limit, self.skip_corrupt)
            self.contents = self._targets.fingerprint()  # a search with others is another one

    def guidance_images(self) -> list[str]:
        """Paths of the guidance images."""
        return self._targets.paths if self._targets is not None else []

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: denoising error of each prompt on the guidance image that its seed draws."""
        targets, generator = prepared(self._targets), prepared(self._generator)
        chosen = [
            int(derive_rng(int(seed), 'inversion').integers(len(targets))) for seed in batch.seeds
        ]
        images = torch.stack([targets.load(i, generator.size) for i in chosen])
        return generator.denoising_loss(images, batch.hidden, batch.seeds)
