# SPDX-License-Identifier: Apache-2.0
"""A style augmentation that needs no generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import DATASETS
from PIL import Image

from mmgap.images import read_image
from mmgap.registry import TRANSFORMS
from mmgap.typed import typed


def mix_amplitude(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Mix another image's amplitude spectrum into an image; its phase stays.

    Phase holds the layout, amplitude much of the style (FACT, arXiv 2105.14075, equation 3).

    Args:
        image: ``(H, W, C)`` uint8.
        other: The same size.
        share: The other's share in the amplitude, in [0, 1].

    Returns:
        ``(H, W, C)`` uint8.
    """
    own, foreign = (np.fft.fft2(x.astype(np.float64), axes=(0, 1)) for x in (image, other))
    amplitude = (1 - share) * np.abs(own) + share * np.abs(foreign)
    mixed = np.fft.ifft2(amplitude * np.exp(1j * np.angle(own)), axes=(0, 1)).real
    return mixed.round().clip(0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
@typed
class AmplitudeMix(BaseTransform):
    """Give an image some of the style of another one, in frequency space.

    Args:
        images: Config of the dataset that the other images come from, whose infos carry
            ``img_path``; usually the training data.
        max_share: The other's share in the amplitude is drawn from [0, max_share].
        prob: Share of the images that are changed.

    Raises:
        ValueError: If a share is outside [0, 1].
    """

    def __init__(
        self, images: Mapping[str, Any], max_share: float = 1.0, prob: float = 1.0
    ) -> None:
        for name, value in dict(max_share=max_share, prob=prob).items():
            if not 0 <= value <= 1:
                raise ValueError(f'AmplitudeMix {name} must be in [0, 1], got {value}')
        self.images = images
        self.max_share = max_share
        self.prob = prob
        self._paths: list[str] | None = None

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``, ``(H, W, 3)`` uint8 BGR."""
        if np.random.random() >= self.prob:
            return results
        if self._paths is None:
            dataset = DATASETS.build(dict(self.images))
            self._paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
        path = self._paths[np.random.randint(len(self._paths))]
        height, width = results['img'].shape[:2]
        other = Image.fromarray(read_image(path)).resize((width, height))
        share = np.random.uniform(0, self.max_share)
        results['img'] = mix_amplitude(results['img'], np.array(other)[..., ::-1], share)
        return results

    def __repr__(self) -> str:
        return f'AmplitudeMix(max_share={self.max_share}, prob={self.prob})'
