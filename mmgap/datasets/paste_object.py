# SPDX-License-Identifier: Apache-2.0
"""An augmentation against backgrounds as shortcuts that needs masks and no generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import DATASETS
from PIL import Image

from mmgap.images import read_image, read_mask
from mmgap.registry import TRANSFORMS
from mmgap.typed import typed


@TRANSFORMS.register_module()
@typed
class PasteObject(BaseTransform):
    """Paste the object of an image, where it is, over an image of another class.

    As the "mixed-rand" images of arXiv 2006.09994, but that the other image keeps its own object.
    What a generator draws must be worth more than this, which costs nothing.

    Args:
        images: Config of the dataset that the other images come from, whose infos carry
            ``img_path`` and ``gt_label``; usually the training data.
        prob: Share of the images that are changed.

    Raises:
        ValueError: If the share is outside [0, 1].
    """

    def __init__(self, images: Mapping[str, Any], prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'PasteObject prob must be in [0, 1], got {prob}')
        self.images = images
        self.prob = prob
        self._dataset: Any = None
        self._labels = np.empty(0)

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``, ``(H, W, 3)`` uint8 BGR, as it was loaded.

        Raises:
            ValueError: If the image has no mask, one of another size, or there is no image of
                another class.
        """
        if np.random.random() >= self.prob:
            return results
        if results.get('mask_path') is None:
            raise ValueError(
                f'PasteObject needs masks, and {results.get("img_path")} has no mask_path'
            )
        other = self._of_another_class(int(results['gt_label']))
        height, width = results['img'].shape[:2]
        mask = read_mask(results['mask_path'])
        if mask.shape[:2] != (height, width):
            raise ValueError(
                f'mask {results["mask_path"]} is {mask.shape[1]}x{mask.shape[0]}, its image '
                f'{width}x{height} here: put PasteObject right after loading'
            )
        behind = np.array(Image.fromarray(read_image(other)).resize((width, height)))[..., ::-1]
        results['img'] = np.where(mask[..., None], results['img'], behind)
        return results

    def _of_another_class(self, label: int) -> dict[str, Any]:
        """The data info of an image, drawn from all of other classes."""
        if self._dataset is None:
            self._dataset = DATASETS.build(dict(self.images))
            infos = (self._dataset.get_data_info(i) for i in range(len(self._dataset)))
            self._labels = np.array([int(info['gt_label']) for info in infos])
        if (self._labels == label).all():
            raise ValueError(f'PasteObject found no image of another class in {self.images}')
        place = np.random.randint(len(self._labels))
        while self._labels[place] == label:
            place = np.random.randint(len(self._labels))
        return self._dataset.get_data_info(place)

    def __repr__(self) -> str:
        return f'PasteObject(prob={self.prob})'
