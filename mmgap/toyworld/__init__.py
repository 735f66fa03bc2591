# SPDX-License-Identifier: Apache-2.0
"""The embedded world: birds on places, drawn by rules, and the tiny models that know it."""

from mmgap.toyworld.dataset import ToyBirds
from mmgap.toyworld.depth_dataset import ToyDepth
from mmgap.toyworld.renderer import WORLD_VERSION, Rendering, render
from mmgap.toyworld.vocabulary import Scene, caption

__all__ = ['WORLD_VERSION', 'Rendering', 'Scene', 'ToyBirds', 'ToyDepth', 'caption', 'render']
