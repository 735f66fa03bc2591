# SPDX-License-Identifier: Apache-2.0
"""Depth heads: MMSegmentation's decoders for maps of classes, with metres at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmseg.models.decode_heads import DPTHead, FCNHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from mmgap.registry import MODELS
from mmgap.typed import typed


@typed
class MetricDepth(BaseDecodeHead):
    """Turns a decode head's one channel into metres and compares it with depth maps.

    To be named before a decode head of MMSegmentation among the bases.

    Args:
        max_depth: Metres that the head cannot exceed.
        loss_decode: Config of a loss, or several, that take ``(B, 1, H, W)`` prediction and depth
            in metres, with 0 where depth is unknown.
        **kwargs: The decode head's own.

    Raises:
        ValueError: If ``max_depth`` is not positive, or the head is given classes.
    """

    def __init__(
        self,
        max_depth: float,
        loss_decode: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        **kwargs: Any,
    ) -> None:
        if not 0 < max_depth < float('inf'):
            raise ValueError(f'max_depth must be positive and finite, got {max_depth}')
        if 'num_classes' in kwargs:
            raise ValueError(f'a depth head has no num_classes, got {kwargs["num_classes"]}')
        # A decode head would build a loss of its own, and warns where it gets no threshold.
        super().__init__(num_classes=1, threshold=0.5, loss_decode=[], **kwargs)
        losses = [loss_decode] if isinstance(loss_decode, Mapping) else loss_decode
        self.loss_decode = nn.ModuleList(MMSEG_MODELS.build(dict(loss)) for loss in losses)
        self.max_depth = max_depth

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """``(B, 1, h, w)`` metres in (0, max_depth), at the resolution of the features."""
        raw = super().forward(inputs)
        # In half precision metres come in steps, and the sigmoid reaches 1.
        exact = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return torch.sigmoid(exact) * self.max_depth

    def loss_by_feat(
        self, seg_logits: Tensor, batch_data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The losses by name.

        Args:
            seg_logits: ``(B, 1, h, w)`` metres; MMSegmentation's name for what :meth:`forward`
                returns.
            batch_data_samples: Their ``gt_depth_map`` is ``(1, H, W)`` in metres, 0 where unknown.
        """
        depth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        prediction = resize(
            seg_logits, depth.shape[2:], mode='bilinear', align_corners=self.align_corners
        )
        losses: dict[str, Tensor] = {}
        for loss in self.loss_decode:
            name = str(loss.loss_name)
            losses[name] = losses.get(name, 0) + loss(prediction, depth)
        return losses


@MODELS.register_module()
class ConvDepthHead(MetricDepth, FCNHead):
    """Depth from convolutional features.

    With ``input_transform='resize_concat'`` it sees several levels at the resolution of the finest.

    Args:
        max_depth: As for :class:`MetricDepth`.
        loss_decode: As for :class:`MetricDepth`.
        **kwargs: As for MMSegmentation's ``FCNHead``: ``in_channels``, ``in_index``, ``channels``,
            ``num_convs`` …
    """


@MODELS.register_module()
class DPTDepthHead(MetricDepth, DPTHead):
    """Depth from the features of a vision transformer (DPT, arXiv 2103.13413).

    Args:
        max_depth: As for :class:`MetricDepth`.
        loss_decode: As for :class:`MetricDepth`.
        **kwargs: As for MMSegmentation's ``DPTHead``: ``embed_dims``, ``post_process_channels`` …
    """
