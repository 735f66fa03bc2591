# SPDX-License-Identifier: Apache-2.0
"""Losses for MMSegmentation's depth heads: thin modules around :mod:`mmgap.feedback.depth_errors`.

All take ``(B, 1, H, W)`` prediction and depth in metres, with 0 where depth is unknown.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmgap.feedback import masked_l1, scale_shift_invariant_mae, silog
from mmgap.registry import MODELS
from mmgap.typed import typed


class DepthLoss(nn.Module):
    """What a head of MMSegmentation asks of a loss: a batch's mean, and a name.

    Args:
        loss_weight: Factor.
        loss_name: Name in the log; must begin with ``loss_``.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_depth') -> None:
        super().__init__()
        if not loss_name.startswith('loss_'):
            raise ValueError(f"loss_name must begin with 'loss_', got {loss_name!r}")
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def per_sample(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """``(B,)``, without the weight."""
        raise NotImplementedError(f'{type(self).__name__} measures nothing')

    def forward(self, prediction: Tensor, depth: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted mean over the maps that have known pixels; 0 if none has.

        Args:
            prediction: ``(B, 1, H, W)`` metres.
            depth: ``(B, 1, H, W)`` metres.
            weight: ``(B,)`` factors of the samples, which do not change what it is divided by.
        """
        some = (depth > 0).flatten(1).any(dim=1)
        losses = self.per_sample(prediction, depth)
        if weight is not None:
            losses = losses * weight
        return self.loss_weight * losses[some].sum() / max(1, int(some.sum()))


@MODELS.register_module()
@typed
class MaskedL1Loss(DepthLoss):
    """See :func:`masked_l1`."""

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_l1') -> None:
        super().__init__(loss_weight, loss_name)

    def per_sample(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """``(B,)`` in metres."""
        return masked_l1(prediction, depth)


@MODELS.register_module()
@typed
class RobustSiLogLoss(DepthLoss):
    """See :func:`silog`.

    Args:
        focus: Of :func:`silog`.
        loss_weight: Factor.
        loss_name: Name in the log.
    """

    def __init__(
        self, focus: float = 0.5, loss_weight: float = 1.0, loss_name: str = 'loss_silog'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.focus = focus

    def per_sample(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """``(B,)``, without unit."""
        return silog(prediction, depth, self.focus)


@MODELS.register_module()
@typed
class ScaleShiftInvariantLoss(DepthLoss):
    """See :func:`scale_shift_invariant_mae`.

    Args:
        gradient_weight: Factor of the gradient term.
        scales: How many scales it looks at.
        loss_weight: Factor of the whole.
        loss_name: Name in the log.
    """

    def __init__(
        self,
        gradient_weight: float = 0.0,
        scales: int = 4,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ssi',
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.gradient_weight = gradient_weight
        self.scales = scales

    def per_sample(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """``(B,)``, without unit."""
        return scale_shift_invariant_mae(prediction, depth, self.gradient_weight, self.scales)
