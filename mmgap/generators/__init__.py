# SPDX-License-Identifier: Apache-2.0
"""Generators: (condition, prompt, seed) -> image, differentiable in the prompt."""

from mmgap.generators.condition import Condition, SourceSet
from mmgap.generators.controlnet import ControlNetGenerator
from mmgap.generators.depth import DepthSourceSet, InverseDepth, LinearDepth
from mmgap.generators.gradient import GradientPolicy
from mmgap.generators.image_to_image import ImageToImageGenerator
from mmgap.generators.inpainting import InpaintingGenerator

__all__ = [
    'Condition',
    'ControlNetGenerator',
    'DepthSourceSet',
    'GradientPolicy',
    'ImageToImageGenerator',
    'InpaintingGenerator',
    'InverseDepth',
    'LinearDepth',
    'SourceSet',
]
