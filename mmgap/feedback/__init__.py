# SPDX-License-Identifier: Apache-2.0
"""Feedback: what the model in training and the target distribution say of an image."""

from mmgap.feedback.adversarial_loss import AdversarialLoss, adversarial_loss
from mmgap.feedback.base import Feedback, FeedbackBatch, least_attack, total_feedback
from mmgap.feedback.clip_model import ClipModel
from mmgap.feedback.critics import ClipCritic, Critic, DepthCritic, ModelCritic, diversity
from mmgap.feedback.depth_adversarial_loss import DepthAdversarialLoss
from mmgap.feedback.depth_errors import masked_l1, scale_shift_invariant_mae, silog
from mmgap.feedback.guidance_images import GuidanceImages
from mmgap.feedback.image_guidance import ImageGuidance, cluster, feature_distance
from mmgap.feedback.inversion_guidance import InversionGuidance
from mmgap.feedback.text_guidance import TextGuidance, hidden_state_distance, read_sentences

__all__ = [
    'AdversarialLoss',
    'ClipCritic',
    'ClipModel',
    'Critic',
    'DepthAdversarialLoss',
    'DepthCritic',
    'FeedbackBatch',
    'Feedback',
    'ImageGuidance',
    'InversionGuidance',
    'ModelCritic',
    'GuidanceImages',
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
