# SPDX-License-Identifier: Apache-2.0
"""Generators: (condition, prompt, seed) -> image, differentiable in the prompt."""

from mmgap.generators.base import DiffusionGenerator
from mmgap.generators.controlnet import ControlNetGenerator, InverseDepth, LinearDepth
from mmgap.generators.gradient import GradientPolicy
from mmgap.generators.image_to_image import ImageToImageGenerator
from mmgap.generators.inpainting import InpaintingGenerator

__all__ = [
    'ControlNetGenerator',
    'DiffusionGenerator',
    'GradientPolicy',
    'ImageToImageGenerator',
    'InpaintingGenerator',
    'InverseDepth',
    'LinearDepth',
]
