# SPDX-License-Identifier: Apache-2.0
"""Sources: labelled images with masks or depth maps, as conditions of a generator."""

from mmgap.sources.condition import Condition, ImageSpec, Sources
from mmgap.sources.depth import DepthSourceSet
from mmgap.sources.masked import SourceSet

__all__ = ['Condition', 'DepthSourceSet', 'ImageSpec', 'SourceSet', 'Sources']
