# SPDX-License-Identifier: Apache-2.0
"""The embedded world: birds on places, drawn by rules, and the tiny models that know it."""

from .dataset import ToyBirds
from .renderer import WORLD_VERSION, Rendering, render
from .vocabulary import Scene, caption

__all__ = ['WORLD_VERSION', 'Rendering', 'Scene', 'ToyBirds', 'caption', 'render']
