# SPDX-License-Identifier: Apache-2.0
"""Where does the model fail? Losses that are low where it does."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmgap.configs import renamed
from mmgap.feedback.base import Feedback, FeedbackBatch
from mmgap.registry import TASK_UTILS
from mmgap.targets import ClassOutput

MODES = ('flip', 'untargeted', 'targeted', 'uniform')


def adversarial_loss(
    logits: Tensor,
    labels: Tensor,
    mode: str,
    target_class: int | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Adversarial loss of each sample (arXiv 2403.15309, section 3).

    - ``flip``: cross-entropy to the other one of two classes.
    - ``untargeted``: minus the cross-entropy to the true class; not bounded from below.
    - ``targeted``: cross-entropy to ``target_class``.
    - ``uniform``: cross-entropy to the uniform distribution; seeks high entropy.

    Args:
        logits: ``(B, classes)``.
        labels: ``(B,)`` true classes.
        mode: One of the above.
        target_class: The class for ``targeted``.
        logit_scale: Factor on the logits. Below 1 it keeps a confident model's gradient alive.

    Returns:
        ``(B,)``, to be minimised.

    Raises:
        ValueError: If ``mode`` is unknown, ``flip`` meets more than two classes, or
            ``target_class`` is not a class.
    """
    classes = logits.shape[1]
    logits = logits * logit_scale
    if mode == 'flip':
        if classes != 2:
            raise ValueError(
                f"mode='flip' needs two classes, the model has {classes}; use 'untargeted', "
                "'targeted' or 'uniform'"
            )
        return F.cross_entropy(logits, 1 - labels, reduction='none')
    if mode == 'untargeted':
        return -F.cross_entropy(logits, labels, reduction='none')
    if mode == 'targeted':
        if target_class is None or not 0 <= target_class < classes:
            raise ValueError(
                f"mode='targeted' needs a target_class in [0, {classes}), got {target_class}"
            )
        return F.cross_entropy(
            logits, labels.new_full(labels.shape, target_class), reduction='none'
        )
    if mode == 'uniform':
        return -F.log_softmax(logits, dim=1).mean(dim=1)
    raise ValueError(f'mode must be one of {MODES}, got {mode!r}')


@TASK_UTILS.register_module()
class AdversarialLoss(Feedback):
    """Feedback of the model in training; see :func:`adversarial_loss`.

    Args:
        mode: ``'flip'``, ``'untargeted'``, ``'targeted'`` or ``'uniform'``.
        target_class: The class for ``'targeted'``.
        logit_scale: Factor on the logits, positive.
        floor: An image whose loss is below it counts as ``floor`` and gives no gradient: it is
            fooled well enough, and guidance goes on alone. Negative for ``'untargeted'``: -3 means
            a cross-entropy of 3. None for no floor.
        target: The old name of ``target_class``.
        **kwargs: As for :class:`~mmgap.feedback.base.Feedback`.

    Raises:
        ValueError: If a setting is out of range.
    """

    needs = 'target'
    label_type = 'classes'

    def __init__(
        self,
        mode: str = 'untargeted',
        target_class: int | None = None,
        logit_scale: float = 1.0,
        floor: float | None = None,
        target: int | None = None,
        **kwargs: Any,
    ) -> None:
        old = {} if target is None else dict(target=target)
        renamed(old, 'AdversarialLoss', target='target_class')
        target_class = old.get('target_class', target_class)
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        if mode == 'targeted' and target_class is None:
            raise ValueError("mode='targeted' needs target_class, the class to aim at")
        if mode != 'targeted' and target_class is not None:
            raise ValueError(
                f"target_class={target_class} has no use with mode={mode!r}; set mode='targeted', "
                'or leave it out'
            )
        if logit_scale <= 0:
            raise ValueError(f'logit_scale must be positive, got {logit_scale}')
        if mode == 'untargeted' and floor is not None and floor >= 0:
            raise ValueError(
                f"floor={floor} would switch mode='untargeted' off, whose loss is never positive; "
                'take a negative one'
            )
        self.mode = mode
        self.target_class = target_class
        self.logit_scale = logit_scale
        self.floor = floor

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: the loss of each image, without the weight.

        Raises:
            ValueError: If the target is no classifier.
        """
        if not isinstance(batch.output, ClassOutput):
            raise ValueError(
                "AdversarialLoss needs a classifier; take 'mmgap.DepthAdversarialLoss' for depth"
            )
        logits = batch.output.logits
        loss = adversarial_loss(
            logits, batch.labels.to(logits.device), self.mode, self.target_class, self.logit_scale
        )
        return loss if self.floor is None else loss.clamp(min=self.floor)
