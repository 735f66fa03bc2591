# SPDX-License-Identifier: Apache-2.0
"""Feedback: what the model in training, and later a target distribution, say of an image."""

from mmgap.feedback.adversarial_loss import AdversarialLoss, adversarial_loss
from mmgap.feedback.target_model import TargetModel, TargetOutput

__all__ = ['AdversarialLoss', 'TargetModel', 'TargetOutput', 'adversarial_loss']
