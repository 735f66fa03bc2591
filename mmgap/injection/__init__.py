# SPDX-License-Identifier: Apache-2.0
"""How generated images enter training, and how to tell which way will do."""

from mmgap.injection.batches import label_type_of
from mmgap.injection.judge import judge_images, pooled_features
from mmgap.injection.probe import separability
from mmgap.injection.refit import (
    Refit,
    check_classes,
    check_refit,
    keep_statistics,
    rate_note,
)
from mmgap.injection.settings import InjectionSettings
from mmgap.injection.weighting import SampleWeights

__all__ = [
    'InjectionSettings',
    'Refit',
    'SampleWeights',
    'check_classes',
    'check_refit',
    'judge_images',
    'keep_statistics',
    'label_type_of',
    'pooled_features',
    'rate_note',
    'separability',
]
