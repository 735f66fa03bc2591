# SPDX-License-Identifier: Apache-2.0
"""Generators: (condition, prompt, seed) -> image, differentiable in the prompt."""

from mmgap.generators.condition import Condition, SourceSet
from mmgap.generators.gradient import GradientPolicy
from mmgap.generators.inpainting import InpaintingGenerator

__all__ = ['Condition', 'GradientPolicy', 'InpaintingGenerator', 'SourceSet']
