# SPDX-License-Identifier: Apache-2.0
"""Settings of GAPHook."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmgap.configs import renamed
from mmgap.injection import InjectionSettings
from mmgap.search import SearchSettings
from mmgap.synthesis import SynthesisSettings
from mmgap.typed import build_settings


@dataclass(frozen=True)
class GAPSettings:
    """The settings of :class:`mmgap.GAPHook`.

    Attributes:
        generator: Config of the generator, e.g. ``dict(type='mmgap.InpaintingGenerator', …)``.
        feedback: Configs of the feedback's losses.
        search: How prompts are searched for, see :class:`~mmgap.search.SearchSettings`.
        synthesis: How images are drawn, see :class:`~mmgap.synthesis.SynthesisSettings`.
        critic: Config of a critic that tells whether images are still what their labels say,
            e.g. ``dict(type='mmgap.ClipCritic', …)``. None for the generator's own, which only
            :class:`~mmgap.generators.ImageToImageGenerator` has; False for no critic.
        input: Size and channel order of the model's input, arguments of
            :class:`~mmgap.targets.TargetModel`; read from the test pipeline by default.
        injection: How the images enter training, see :class:`~mmgap.injection.InjectionSettings`.
            ``ratio`` is its ratio in configs of older versions.
        start: Epochs (or iterations, for iteration-based loops) of training before the first
            round.
        rounds: Number of rounds.
        interval: Epochs (or iterations) between two rounds.
        budget: Images of all rounds together.
        max_seconds: No further round begins once searches and syntheses have taken so long.
        plateau: No further round begins once the validation's worst group has not become better for
            so many rounds. Needs a val_dataloader and :class:`mmgap.GroupAccuracy`,
            :class:`mmgap.MacroF1` or :class:`mmgap.GroupDepth`.
        seed: Seed of every draw; the Runner's by default.

    Raises:
        ValueError: If a number is out of range.
    """

    generator: dict[str, Any]
    feedback: Sequence[dict[str, Any]] = (dict(type='mmgap.AdversarialLoss'),)
    search: SearchSettings = field(default_factory=SearchSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    critic: dict[str, Any] | bool | None = None
    input: dict[str, Any] | None = None
    injection: InjectionSettings = field(default_factory=InjectionSettings)
    start: int = 1
    rounds: int = 1
    interval: int = 1
    budget: int = 400
    max_seconds: float | None = None
    plateau: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.rounds < 1 or self.interval < 1:
            raise ValueError(
                'start must not be negative, rounds and interval at least 1, got '
                f'start={self.start}, rounds={self.rounds}, interval={self.interval}'
            )
        if self.budget < self.rounds:
            raise ValueError(
                f'budget={self.budget} gives not one image to each of {self.rounds} rounds'
            )
        for name in ('max_seconds', 'plateau'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f'{name} must be positive, or None, got {value}')

    @classmethod
    def from_config(cls, hook: Mapping[str, Any]) -> GAPSettings:
        """Read the config of a GAPHook.

        Raises:
            TypeError: If it has a setting that there is not; lists those there are.
            ValueError: If a setting is out of range.
        """
        settings = {name: value for name, value in hook.items() if name not in ('type', 'priority')}
        renamed(settings, 'GAPHook', target='input')
        if 'ratio' in settings:
            warnings.warn(
                'GAPHook: ratio=… is called injection=dict(ratio=…) now',
                FutureWarning,
                stacklevel=2,
            )
            ratio, injection = settings.pop('ratio'), settings.get('injection') or {}
            if 'ratio' in injection:
                raise ValueError(
                    f'GAPHook has ratio={ratio} and injection=dict(ratio={injection["ratio"]}); '
                    'leave the first out'
                )
            settings['injection'] = {**injection, 'ratio': ratio}
        kinds: dict[str, type] = dict(
            search=SearchSettings, synthesis=SynthesisSettings, injection=InjectionSettings
        )
        for name, kind in kinds.items():
            if not isinstance(settings.get(name), kind):
                settings[name] = build_settings(kind, settings.get(name) or {}, name)
        return build_settings(cls, settings, 'GAPHook')

    def due(self, round_index: int) -> int:
        """Epochs (or iterations) of training before a round."""
        return self.start + round_index * self.interval

    def images_of(self, round_index: int) -> int:
        """A round's part of the budget."""
        end = self.budget * (round_index + 1) // self.rounds
        return end - self.budget * round_index // self.rounds
