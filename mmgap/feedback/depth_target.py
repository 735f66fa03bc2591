# SPDX-License-Identifier: Apache-2.0
"""A depth model in training as a differentiable judge of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.feedback.target_model import TargetModel

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

    def hits(self, truth: Tensor | None = None) -> Tensor:
        """``(B,)`` on the CPU: share of known pixels within a factor of 1.25 of the truth."""
        known = self.depth > 0
        truth = torch.where(known, self.depth, 1.0)
        ratio = self.prediction.detach().clamp(min=1e-6) / truth
        right = (torch.maximum(ratio, 1 / ratio) < RIGHT_WITHIN) & known
        counts = known.flatten(1).sum(dim=1).clamp(min=1)
        return (right.flatten(1).sum(dim=1) / counts).float().cpu()


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
        """Judge images.

        Args:
            images: ``(B, 3, H, W)`` RGB in [0, 1].
            labels: ``(B, 1, H, W)`` metres, 0 where unknown.

        Returns:
            Depth and loss of each sample, with gradient to ``images``.

        Raises:
            ValueError: If the model is no depth model.
        """
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        if not hasattr(self.model, 'encode_decode'):
            raise ValueError(
                f'{type(self.model).__name__} has no encode_decode; depth feedback needs a '
                'DepthEstimator of MMSegmentation'
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
        with torch.autocast(reference.device.type, enabled=False):
            given = dict(inputs=list(inputs), data_samples=samples)
            data = self.model.data_preprocessor(given, False)
            pixels = data['inputs'].to(reference.dtype)
            prediction = self.model.encode_decode(pixels, [dict(shape) for _ in samples])
            loss = [
                self.model.parse_losses(self.model.loss(pixels[i : i + 1], [sample]))[0]
                for i, sample in enumerate(data['data_samples'])
            ]
        return DepthOutput(prediction, depth.to(prediction), torch.stack(loss))
