# SPDX-License-Identifier: Apache-2.0
"""How much of the real images of the test's conditions a benchmark's pool covers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from torch import Tensor

from mmgap.evaluation import density_and_coverage
from mmgap.feedback import ClipModel
from mmgap.images import read_image
from mmgap.pool import SamplePool


class Coverage:
    """Density and coverage of pools in CLIP's space, see :func:`density_and_coverage`.

    Args:
        clip: Arguments of :class:`~mmgap.feedback.clip_model.ClipModel`.
        images: Changes to the test data: the real images.
        test: Config of the test data.
        size: ``(height, width)`` that generated images have, and real ones are brought to.
    """

    def __init__(
        self,
        clip: Mapping[str, Any],
        images: Mapping[str, Any],
        test: Mapping[str, Any],
        size: tuple[int, int],
    ) -> None:
        self.clip = ClipModel(**clip)
        self.size = size
        dataset = DATASETS.build({**copy.deepcopy(dict(test)), **images})
        self.real = self._features(
            read_image(dataset.get_data_info(i)) for i in range(len(dataset))
        )

    def __call__(self, pool: SamplePool, count: int) -> dict[str, float]:
        """``density`` and ``coverage`` of the first so many kept images, on which both depend."""
        pictures = (np.array(Image.open(pool.path(sample))) for sample in pool.kept[:count])
        density, coverage = density_and_coverage(self.real, self._features(pictures))
        return dict(density=density, coverage=coverage)

    @torch.no_grad()
    def _features(self, pictures: Iterable[np.ndarray]) -> Tensor:
        features = []
        for picture in pictures:
            fitted = ImageOps.fit(Image.fromarray(picture), self.size[::-1])
            pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 255
            features.append(self.clip.encode_images(pixels).float().cpu())
        return torch.cat(features)
