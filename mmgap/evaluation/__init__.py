# SPDX-License-Identifier: Apache-2.0
"""Metrics per group."""

from mmgap.evaluation.group_accuracy import GroupAccuracy
from mmgap.evaluation.group_depth import GroupDepth

__all__ = ['GroupAccuracy', 'GroupDepth']
