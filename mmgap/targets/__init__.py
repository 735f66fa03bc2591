# SPDX-License-Identifier: Apache-2.0
"""Targets: any model of the toolboxes, seen from the image."""

from mmgap.targets.classifier import ClassOutput, TargetModel, TargetOutput
from mmgap.targets.depth import DepthOutput, DepthTarget

__all__ = ['ClassOutput', 'DepthOutput', 'DepthTarget', 'TargetModel', 'TargetOutput']
