# SPDX-License-Identifier: Apache-2.0
"""Feedback: what the model in training and the target distribution say of an image."""

from mmgap.feedback.adversarial_loss import AdversarialLoss, adversarial_loss
from mmgap.feedback.base import Draft, Feedback, least_attack, total_feedback
from mmgap.feedback.clip_model import ClipModel
from mmgap.feedback.critics import ClipCritic, Critic, DepthCritic, ModelCritic, diversity
from mmgap.feedback.depth_adversarial_loss import DepthAdversarialLoss
from mmgap.feedback.depth_errors import masked_l1, scale_shift_invariant_mae, silog
from mmgap.feedback.depth_target import DepthOutput, DepthTarget
from mmgap.feedback.image_guidance import ImageGuidance, cluster, feature_distance
from mmgap.feedback.inversion_guidance import InversionGuidance
from mmgap.feedback.target_images import TargetImages
from mmgap.feedback.target_model import TargetModel, TargetOutput
from mmgap.feedback.text_guidance import TextGuidance, hidden_state_distance, read_sentences

__all__ = [
    'AdversarialLoss',
    'ClipCritic',
    'ClipModel',
    'Critic',
    'DepthAdversarialLoss',
    'DepthCritic',
    'DepthOutput',
    'DepthTarget',
    'Draft',
    'Feedback',
    'ImageGuidance',
    'InversionGuidance',
    'ModelCritic',
    'TargetImages',
    'TargetModel',
    'TargetOutput',
    'TextGuidance',
    'adversarial_loss',
    'cluster',
    'diversity',
    'feature_distance',
    'hidden_state_distance',
    'masked_l1',
    'read_sentences',
    'scale_shift_invariant_mae',
    'silog',
    'least_attack',
    'total_feedback',
]
