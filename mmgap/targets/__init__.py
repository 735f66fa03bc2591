# SPDX-License-Identifier: Apache-2.0
"""Targets: any model of the toolboxes, seen from the image."""

from mmgap.targets.classifier import ClassOutput, TargetModel, TargetOutput
from mmgap.targets.depth import DepthOutput, DepthTarget
from mmgap.targets.load import build_target, load_model

__all__ = [
    'ClassOutput',
    'DepthOutput',
    'DepthTarget',
    'TargetModel',
    'TargetOutput',
    'build_target',
    'load_model',
]
