# SPDX-License-Identifier: Apache-2.0
"""A loop's parts, from what a config says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict

from mmgap.configs import name_of
from mmgap.datasets.synthetic_mix import SyntheticMixDataset, real_only
from mmgap.feedback import Critic
from mmgap.generators import DiffusionGenerator
from mmgap.loop.settings import GAPSettings
from mmgap.registry import HOOKS, TASK_UTILS
from mmgap.sources import Sources
from mmgap.wrappers import Distinct, parts_of


def build_sources(dataset: Any, generator: DiffusionGenerator) -> Sources:
    """The sources of the training data: the real samples that its wrappers show, each once.

    Args:
        dataset: What the model is trained on, with or without a SyntheticMixDataset.
        generator: Draws images.

    Raises:
        TypeError: If a wrapper does not tell which samples it shows.
        ValueError: As for the generator's ``sources``.
    """
    if isinstance(dataset, SyntheticMixDataset):
        dataset = dataset.dataset
    if parts_of(dataset):
        with real_only(dataset):
            dataset = Distinct(dataset)
    return generator.sources(dataset)


def settings_of(hook: Mapping[str, Any]) -> GAPSettings:
    """The settings of a config of GAPHook, or of a class made from it."""
    return HOOKS.build(dict(hook)).settings


def build_critic(
    settings: Mapping[str, Any] | bool | None,
    generator: DiffusionGenerator,
    classes: Sequence[str],
) -> Critic | None:
    """A prepared critic: the settings', or the generator's where they are None; False for none."""
    if settings is None:
        settings = generator.critic
    if not settings:  # False, or the generator has none
        return None
    if not isinstance(settings, Mapping):
        raise ValueError(f'critic must be a config, None or False, got {settings!r}')
    critic: Critic = TASK_UTILS.build(dict(settings))
    critic.prepare(classes)
    return critic


def without_pools(dataset: Any) -> Any:
    """The config of a dataset whose mixes have no pool yet: nothing but real samples."""
    if isinstance(dataset, Mapping):
        emptied = {key: without_pools(value) for key, value in dataset.items()}
        if name_of(dataset.get('type')) == SyntheticMixDataset.__name__:
            emptied.update(pool=None, budget=None)
        return ConfigDict(emptied)
    return [without_pools(part) for part in dataset] if isinstance(dataset, list) else dataset
