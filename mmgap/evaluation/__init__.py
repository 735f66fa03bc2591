# SPDX-License-Identifier: Apache-2.0
from mmgap.evaluation.group_accuracy import GroupAccuracy

__all__ = ['GroupAccuracy']
