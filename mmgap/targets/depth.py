# SPDX-License-Identifier: Apache-2.0
"""Depth models as targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.targets.classifier import TargetModel

# A pixel counts as right within this factor: the usual first threshold of depth metrics.
RIGHT_WITHIN = 1.25


@dataclass
class DepthOutput:
    """What a depth target says of a batch.

    Attributes:
        prediction: ``(B, 1, h, w)`` metres, at the target's input size.
        depth: ``(B, 1, h, w)`` metres of the truth, 0 where unknown.
        loss: ``(B,)``, the model's own loss of each sample.
    """

    prediction: Tensor
    depth: Tensor
    loss: Tensor

    def hits(self, _: Tensor | None = None) -> Tensor:
        """``(B,)``: share of known pixels within a factor of 1.25 of the truth."""
        known = self.depth > 0
        ratio = self.prediction.detach().clamp(min=1e-6) / torch.where(known, self.depth, 1.0)
        right = (torch.maximum(ratio, 1 / ratio) < RIGHT_WITHIN) & known
        counts = known.flatten(1).sum(dim=1).clamp(min=1)
        return (right.flatten(1).sum(dim=1) / counts).float()

    agreement = hits


class DepthTarget(TargetModel):
    """Any depth model of MMSegmentation, seen from the image; see :class:`TargetModel`.

    The loss is what the model itself computes in training, auxiliary heads included, for one image
    at a time. Depth maps are brought to the input size without interpolation.

    Args:
        model: A ``DepthEstimator``, also wrapped for distributed training.
        input_size: ``(height, width)`` that the model is tested at; None leaves images as they are.
        channel_order: ``'bgr'`` or ``'rgb'``, what the pipeline hands to the data preprocessor.
    """

    def __call__(self, images: Tensor, labels: Tensor) -> DepthOutput:
        """Loss and prediction for each image.

        Args:
            images: ``(B, 3, H, W)`` RGB in [0, 1].
            labels: ``(B, 1, H, W)`` metres, 0 where unknown.

        Returns:
            Depth and loss of each sample, with gradient to ``images``.

        Raises:
            ValueError: If the model is no depth model.
        """
        from mmengine.structures import PixelData
        from mmseg.models import DepthEstimator
        from mmseg.structures import SegDataSample

        if not isinstance(self.model, DepthEstimator):
            raise ValueError(
                f'depth feedback needs a DepthEstimator of MMSegmentation, the model is a '
                f'{type(self.model).__name__}'
            )
        if getattr(self.model.backbone, 'class_embed_select', False):
            raise ValueError(
                'class_embed_select=True asks for the category of each image, which generated ones '
                'do not have; train with class_embed_select=False'
            )
        if getattr(self.model.data_preprocessor, 'test_cfg', None):
            raise ValueError(
                'data_preprocessor.test_cfg pads images but not depth; resize in the test pipeline '
                'instead'
            )
        inputs, reference = self.inputs(images), next(self.model.parameters())
        size = tuple(inputs.shape[-2:])
        depth = labels.to(inputs.device)
        if tuple(depth.shape[-2:]) != size:
            depth = F.interpolate(depth, size, mode='nearest-exact')
        shape = dict(img_shape=size, ori_shape=size, pad_shape=size)
        samples = []
        for one in depth:
            sample = SegDataSample(metainfo=dict(shape))
            sample.gt_depth_map = PixelData(data=one.to(reference.dtype))
            samples.append(sample)
        model = self.model
        with torch.autocast(reference.device.type, enabled=False):
            given = dict(inputs=list(inputs), data_samples=samples)
            data = model.data_preprocessor(given, False)
            pixels = data['inputs'].to(reference.dtype)
            metas = [dict(shape) for _ in samples]
            # What encode_decode and loss do, with one pass through the backbone for both.
            features = model.extract_feat(pixels, metas)
            prediction = model.decode_head.predict(features, metas, model.test_cfg)
            loss = [self._loss_of(_sample(features, i), one) for i, one in enumerate(samples)]
        return DepthOutput(prediction, depth.to(prediction), torch.stack(loss))

    def _loss_of(self, features: Any, sample: Any) -> Tensor:
        """The model's own loss of one sample, auxiliary heads included."""
        losses = self.model._decode_head_forward_train(features, [sample])
        if self.model.with_auxiliary_head:
            losses.update(self.model._auxiliary_head_forward_train(features, [sample]))
        return self.model.parse_losses(losses)[0]


def _sample(features: Any, i: int) -> Any:
    """The features of sample ``i``, in whatever lists they come, still as a batch."""
    if isinstance(features, (list, tuple)):
        return type(features)(_sample(part, i) for part in features)
    return features[i : i + 1]
