# SPDX-License-Identifier: Apache-2.0
"""Where does the depth model fail?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmgap.feedback.base import Feedback, FeedbackBatch
from mmgap.feedback.depth_errors import masked_l1, scale_shift_invariant_mae
from mmgap.registry import TASK_UTILS
from mmgap.targets import DepthOutput

LOSSES = ('model', 'l1', 'ssi')


@TASK_UTILS.register_module()
class DepthAdversarialLoss(Feedback):
    """Minus the error of a depth model (arXiv 2403.15309, section 3 and appendix).

    Args:
        loss: ``'model'``: what the model itself computes in training. ``'l1'``: mean absolute error
            in metres over known pixels (the paper's for the U-Net). ``'ssi'``: scale- and
            shift-invariant mean absolute error (the paper's for DPT).
        floor: An image whose feedback is below it counts as ``floor`` and gives no gradient: it is
            hard enough. Negative: -0.3 means an error of 0.3. None for no floor.
        **kwargs: As for :class:`~mmgap.feedback.base.Feedback`.

    Raises:
        ValueError: If ``loss`` is unknown or ``floor`` is not negative.
    """

    needs = 'target'
    label_type = 'depth'

    def __init__(self, loss: str = 'model', floor: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if loss not in LOSSES:
            raise ValueError(f'loss must be one of {LOSSES}, got {loss!r}')
        if floor is not None and floor >= 0:
            raise ValueError(f'floor={floor} would switch the term off; take a negative one')
        self.loss = loss
        self.floor = floor

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: minus the error of each image, without the weight.

        Raises:
            ValueError: If the target is no depth model.
        """
        output = batch.output
        if not isinstance(output, DepthOutput):
            raise ValueError(
                "DepthAdversarialLoss needs a depth model; take 'mmgap.AdversarialLoss' for classes"
            )
        error = output.loss
        if self.loss != 'model':
            measure = masked_l1 if self.loss == 'l1' else scale_shift_invariant_mae
            error = measure(output.prediction, output.depth)
        return -error if self.floor is None else (-error).clamp(min=self.floor)
