# SPDX-License-Identifier: Apache-2.0
"""Segmenters: they make masks for a dataset without, from where the object is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmgap.registry import TASK_UTILS
from mmgap.weights import load_pretrained


class Segmenter:
    """What all segmenters share. Your own can be named as ``type='your_package.YourClass'``."""

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Find the pixels of the objects.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            boxes: ``(N, 4)`` float: left, top, right and bottom of each object in pixels. With none
                (N = 0) the object is taken to be at the centre of the image.

        Returns:
            ``(H, W)`` bool, True on all of the objects.
        """
        raise NotImplementedError(f'{type(self).__name__} segments nothing')


@TASK_UTILS.register_module()
class SamSegmenter(Segmenter):
    """Segment Anything, as transformers has it.

    Each box gives one mask, and an image the union of them. A point can mean an object or a part of
    it, so for the centre SAM draws three masks, and the one that it trusts most is taken.

    Source: Kirillov et al., "Segment Anything", ICCV 2023.

    Args:
        model: Folder or hub id of a SAM in transformers' format, e.g. ``'facebook/sam-vit-base'``.
            Of the first generation: SAM 2 and others are refused.
        device: Where it runs; by default MMEngine's device.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is no SAM, or its weights do not fit its config.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        from mmengine.device import get_device
        from transformers import AutoConfig, SamModel, SamProcessor

        def load(kind: Any, **settings: bool) -> Any:
            named = 'a SAM of transformers'
            function = kind.from_pretrained
            return load_pretrained(
                function, model, named, 'transformers', 'config.json', **settings
            )

        # SamModel itself would take any model, and fill it up with random weights.
        found = load(AutoConfig).model_type
        if found != 'sam':
            raise ValueError(f'model={model!r} is a {found!r} model, not a SAM (model_type "sam")')
        self.network, report = load(
            SamModel, output_loading_info=True, ignore_mismatched_sizes=True
        )
        wrong = [*report['missing_keys'], *(key for key, *_ in report['mismatched_keys'])]
        if wrong:
            raise ValueError(
                f'model={model!r}: {len(wrong)} weights are missing or have another shape than '
                f'config.json says, {min(wrong)!r} among them'
            )
        self.processor = load(SamProcessor)
        self.device = torch.device(device or get_device())
        self.network.to(self.device).float().eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """``(H, W)`` bool; see :class:`Segmenter`."""
        if len(boxes):
            prompt = dict(input_boxes=[np.asarray(boxes, np.float64).tolist()])
        else:
            height, width = image.shape[:2]
            prompt = dict(input_points=[[[width / 2, height / 2]]])
        inputs = self.processor(images=image, return_tensors='pt', **prompt)
        sizes = inputs['original_sizes'], inputs['reshaped_input_sizes']
        inputs = inputs.to(self.device, torch.float32)
        # (1, objects, masks of each, height, width)
        output = self.network(**inputs, multimask_output=not len(boxes))
        masks = self.processor.post_process_masks(output.pred_masks.cpu(), *sizes)[0]
        best = output.iou_scores[0].argmax(dim=1).tolist()
        return masks[range(len(masks)), best].any(dim=0).numpy()
