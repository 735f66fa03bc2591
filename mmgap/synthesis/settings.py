# SPDX-License-Identifier: Apache-2.0
"""Settings of a synthesis: GAPHook's ``synthesis``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisSettings:
    """How found prompts become images.

    Attributes:
        num_inference_steps: Denoising steps of an image.
        batch_size: Images drawn at a time, by all processes together: each image's last bits
            depend on it. With fewer than processes, some have nothing to do.
        cross: Draw every prompt with sources of all classes. False draws a prompt only with the
            class that it was searched for, which makes the look of generated images predict the
            label.
        aim: Part of a class's images that its prompts share in proportion to how often the target
            fails on their images of this class; the rest is divided equally. 0 asks no target.
        aim_images: Images per prompt and class that are drawn to find that out, and not kept.
        attempts: How often an image may be drawn until the critic keeps it.

    Raises:
        ValueError: If a setting is out of range.
    """

    num_inference_steps: int = 15
    batch_size: int = 8
    cross: bool = True
    aim: float = 0.0
    aim_images: int = 8
    attempts: int = 4

    def __post_init__(self) -> None:
        for name in ('num_inference_steps', 'batch_size', 'aim_images', 'attempts'):
            if getattr(self, name) < 1:
                raise ValueError(f'synthesis {name} must be at least 1, got {getattr(self, name)}')
        if not 0 <= self.aim <= 1:
            raise ValueError(f'synthesis aim must be in [0, 1], got {self.aim}')
