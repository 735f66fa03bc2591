# SPDX-License-Identifier: Apache-2.0
"""Settings of a synthesis: GAPHook's ``synthesis``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmgap.synthesis.guidance import GuidanceSettings
from mmgap.synthesis.selection import Keep
from mmgap.typed import build_settings


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
        overdraw: Images drawn for each one that is kept; above 1, :attr:`keep` says which, in each
            ``overdraw`` batches by itself (of 32 at most, that are held in memory). What the critic
            drops is then not drawn again.
        keep: Which are kept, arguments of :class:`~mmgap.synthesis.selection.Keep`:
            ``dict(by='loss', rank=1.0)``, the default. Needs ``overdraw`` above 1, and a target.
        guidance: Steers each image while it is drawn, arguments of
            :class:`~mmgap.synthesis.guidance.GuidanceSettings`:
            ``dict(feedback=[…], weight=0.1, every=1)``. None steers nothing.

    Raises:
        ValueError: If a setting is out of range.
    """

    num_inference_steps: int = 15
    batch_size: int = 8
    cross: bool = True
    aim: float = 0.0
    aim_images: int = 8
    attempts: int = 4
    overdraw: int = 1
    keep: Keep | None = None
    guidance: GuidanceSettings | None = None

    def __post_init__(self) -> None:
        for name in ('num_inference_steps', 'batch_size', 'aim_images', 'attempts', 'overdraw'):
            if getattr(self, name) < 1:
                raise ValueError(f'synthesis {name} must be at least 1, got {getattr(self, name)}')
        if not 0 <= self.aim <= 1:
            raise ValueError(f'synthesis aim must be in [0, 1], got {self.aim}')
        for name, kind in (('keep', Keep), ('guidance', GuidanceSettings)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                made = build_settings(kind, value, f'synthesis {name}')
                object.__setattr__(self, name, made)
        if self.keep is not None and self.overdraw == 1:
            raise ValueError(
                'synthesis keep chooses among more images than are kept: give overdraw=2 or more '
                'beside it'
            )

    @property
    def selection(self) -> Keep:
        """``keep``, with its default filled in."""
        return self.keep or Keep()
