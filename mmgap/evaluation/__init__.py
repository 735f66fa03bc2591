# SPDX-License-Identifier: Apache-2.0
"""Metrics per group and per class, and of generated images."""

from mmgap.evaluation.coverage import density_and_coverage
from mmgap.evaluation.group_accuracy import GroupAccuracy
from mmgap.evaluation.group_depth import GroupDepth
from mmgap.evaluation.macro_f1 import MacroF1

__all__ = ['GroupAccuracy', 'GroupDepth', 'MacroF1', 'density_and_coverage']
