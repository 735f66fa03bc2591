# SPDX-License-Identifier: Apache-2.0
"""Metrics per group and per class."""

from mmgap.evaluation.group_accuracy import GroupAccuracy
from mmgap.evaluation.group_depth import GroupDepth
from mmgap.evaluation.macro_f1 import MacroF1

__all__ = ['GroupAccuracy', 'GroupDepth', 'MacroF1']
