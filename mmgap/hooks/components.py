# SPDX-License-Identifier: Apache-2.0
"""What a round is made of, built from a config: shared by GAPHook and the step-by-step tools."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import load_checkpoint, set_random_seed
from torch import nn

from mmgap.compat import allow_checkpoint_history, name_pretrained
from mmgap.configs import gap_hooks, name_of, set_scope
from mmgap.datasets.masked_folders import share_classes
from mmgap.datasets.synthetic_mix import SyntheticMixDataset, real_only
from mmgap.feedback import Critic, Feedback
from mmgap.prompts import SoftPrompt
from mmgap.registry import HOOKS, TASK_UTILS
from mmgap.search import (
    AlignmentAlarm,
    PromptSearch,
    allocation,
    check_ids,
    initial_prompts,
    round_robin,
)
from mmgap.seeds import derive_seed
from mmgap.sources import DepthSourceSet, SourceSet
from mmgap.synthesis import Synthesizer
from mmgap.targets import DepthTarget, TargetModel
from mmgap.wrappers import Distinct, parts_of

INITIAL = ('prompts_per_class', 'tokens', 'grow', 'init', 'aim', 'scope', 'template')


def split_search(settings: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split GAPHook's ``search`` into arguments of ``initial_prompts`` and of ``PromptSearch``."""
    settings = dict(settings or {})
    initial = {name: settings.pop(name) for name in INITIAL if name in settings}
    return initial, settings


def round_seed(seed: int, number: int) -> int:
    """Seed of all that round ``number`` searches and draws."""
    return derive_seed(seed, 'round', number)


def build_sources(dataset: Any, generator: Any) -> SourceSet | DepthSourceSet:
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


def without_pools(dataset: Any) -> Any:
    """The config of a dataset whose mixes have no pool yet: nothing but real samples."""
    if isinstance(dataset, Mapping):
        emptied = {key: without_pools(value) for key, value in dataset.items()}
        if name_of(dataset.get('type')) == SyntheticMixDataset.__name__:
            emptied.update(pool=None, budget=None)
        return ConfigDict(emptied)
    return [without_pools(part) for part in dataset] if isinstance(dataset, list) else dataset


def build_target(
    model: nn.Module,
    config: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    sources: SourceSet | DepthSourceSet,
) -> TargetModel:
    """The model, seen from the image.

    Args:
        model: A classifier of MMPretrain or, with depth maps as labels, a depth model of
            MMSegmentation.
        config: The run's config, whose test or val pipeline says size and channel order.
        settings: Arguments of :class:`~mmgap.feedback.TargetModel` that say them instead.
        sources: What it is asked about.

    Raises:
        ValueError: If neither says them.
    """
    kind = DepthTarget if sources.label_type == 'depth' else TargetModel
    if settings is not None:
        return kind(model, **settings)
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(name) or {}).get('dataset')
        while isinstance(dataset, Mapping) and 'pipeline' not in dataset:
            dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
        if dataset is not None:
            return kind.from_pipeline(model, dataset['pipeline'])
    raise ValueError(
        'the config has no test or val pipeline to read the input size from; give GAPHook '
        'target=dict(input_size=(height, width))'
    )


def prepare_feedback(
    feedback: Sequence[Feedback],
    generator: Any,
    classes: Sequence[str],
    evaluation: Sequence[Any],
    cache: Path | None = None,
) -> None:
    """Prepare the terms, and make sure that none of them looks at evaluation images.

    Args:
        feedback: The terms.
        generator: Draws images.
        classes: Class names.
        evaluation: Datasets that the run validates or tests on.
        cache: Folder for features that are worth keeping.

    Raises:
        ValueError: If a term's target images are among the evaluation images.
    """
    for term in feedback:
        term.prepare(generator, classes, cache)
    guiding = {_same_path(path) for term in feedback for path in term.guidance_images()}
    if not guiding:
        return
    for dataset in evaluation:
        for i in range(len(dataset)):
            path = dataset.get_data_info(i).get('img_path')
            if path and _same_path(path) in guiding:
                raise ValueError(
                    f'target image {path} is also an image of {type(dataset).__name__}, which the '
                    'run is evaluated on; take other images for guidance'
                )


def build_critic(
    settings: Mapping[str, Any] | bool | None, generator: Any, classes: Sequence[str]
) -> Critic | None:
    """A prepared critic: the config's, or the generator's where it names none; False for none."""
    if settings is None:
        settings = generator.critic
    if not settings:
        return None
    critic = TASK_UTILS.build(dict(settings))
    critic.prepare(classes)
    return critic


def check_label_types(parts: Sequence[Any], sources: SourceSet | DepthSourceSet) -> None:
    """See that terms and critics are for the type of the labels; None is no part.

    Raises:
        ValueError: If one is for another type.
    """
    for part in parts:
        if part is not None and part.label_type not in (None, sources.label_type):
            raise ValueError(
                f'{type(part).__name__} is for labels of type {part.label_type!r}, those of the '
                f'training data are {sources.label_type!r}'
            )


def check_classes(sources: SourceSet | DepthSourceSet, evaluation: Sequence[Any]) -> None:
    """See that the numbers of the labels mean the same in all splits.

    Args:
        sources: Of the training data.
        evaluation: Datasets that the run validates or tests on.

    Raises:
        ValueError: If one has other classes.
    """
    for dataset in evaluation:
        classes = dataset.metainfo.get('classes')
        if sources.label_type == 'classes' and classes and tuple(classes) != sources.classes:
            raise ValueError(
                f'{type(dataset).__name__} for evaluation has the classes {[*classes]}, the '
                f'training data {[*sources.classes]}: a label would mean two things. Give both '
                'the same, with metainfo=dict(classes=[…])'
            )


def _same_path(path: str) -> str:
    return path if '://' in path else os.path.realpath(path)


def build_search(
    generator: Any,
    target: TargetModel,
    feedback: Sequence[Feedback],
    sources: SourceSet,
    initial: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int,
    number: int = 0,
    critic: Critic | None = None,
    draw: bool = True,
) -> tuple[PromptSearch, list[SoftPrompt]]:
    """The search of round ``number`` and the prompts that it starts from.

    Args:
        generator: Draws images.
        target: The model to search against.
        feedback: Prepared terms to minimise.
        sources: Labelled, masked images.
        initial: Arguments of :func:`~mmgap.search.initial_prompts`. ``grow`` is the number of
            tokens that prompts gain with each round. ``aim`` in [0, 1] is the part of a class's
            prompts that share a list ``init`` by how often the target fails on its images (see
            :func:`~mmgap.search.allocation`); it costs ``holdout`` images per start and class.
        settings: Arguments of :class:`~mmgap.search.PromptSearch`. Prompts that do not start as
            draws of the vocabulary are not restarted unless ``max_restarts`` says so.
        seed: Seed of the run.
        number: The round; the prompts' ids start with it.
        critic: Prepared critic for the alignment alarm and for ``aim``.
        draw: False only looks whether the parts fit: no image is drawn, so ``aim`` is left out.

    Raises:
        ValueError: If the settings do not fit each other.
    """
    check_label_types([*feedback, critic], sources)
    seed = round_seed(seed, number)
    settings = dict(settings)
    initial = {'tokens': 5, **initial}
    grow = initial.pop('grow', 0)
    if grow < 0:
        raise ValueError(f'search grow must not be negative, got {grow}')
    grown = grow * number
    counts = initial['tokens']
    initial['tokens'] = counts + grown if isinstance(counts, int) else [n + grown for n in counts]
    if settings.get('alarm') is not None:
        settings['alarm'] = AlignmentAlarm(critic, **settings['alarm'])
    if initial.get('init', 'vocabulary') != 'vocabulary':
        settings.setdefault('max_restarts', 0)  # a restart would leave the start that was asked for
    search = PromptSearch(generator, target, feedback, sources, **{'seed': seed, **settings})
    generator.check_steps(search.num_inference_steps, 'search')
    aim = initial.pop('aim', 0.0)
    if aim:
        _check_aim(aim, initial)
    if aim and draw:
        initial['order'] = _aimed(search, initial, aim, critic)
    about = dict(seed=seed, prefix=f'r{number}-')
    prompts = initial_prompts(generator.prompts, sources.classes, **about, **initial)
    check_ids(prompts)
    return search, prompts


def _check_aim(aim: float, initial: Mapping[str, Any]) -> None:
    starts, scope = initial.get('init'), initial.get('scope', 'class')
    if not 0 <= aim <= 1:
        raise ValueError(f'search aim must be in [0, 1], got {aim}')
    if not isinstance(starts, (list, tuple)) or 'vocabulary' in starts or scope != 'class':
        raise ValueError(
            "search aim needs a list init of words or prompt files, and scope='class'; got "
            f'init={starts!r} and scope={scope!r}'
        )
    if not isinstance(initial['tokens'], int):
        raise ValueError(f'search aim needs one number of tokens, got {initial["tokens"]}')


def _aimed(
    search: PromptSearch, initial: Mapping[str, Any], aim: float, critic: Critic | None
) -> list[list[int]]:
    """Which starts the prompts of each class get, by how often the target fails on their images."""
    starts, order = initial['init'], []
    count = initial.get('prompts_per_class', 4)
    tried = {**initial, 'prompts_per_class': len(starts)}
    for label, name in enumerate(search.sources.classes):
        prompts = initial_prompts(search.generator.prompts, [name], seed=search.seed, **tried)
        rates = search.failure_rates(prompts, label, critic)
        said = ', '.join(f'{start!r} {rate:.2f}' for start, rate in zip(starts, rates, strict=True))
        MMLogger.get_current_instance().info(f'[gap] the target fails on {name}: {said}')
        # Where it fails on all alike, each class goes on where the one before ended.
        shift = label * count % len(starts)
        turns = round_robin(allocation(np.roll(rates, -shift), aim), count)
        order.append([(turn + shift) % len(starts) for turn in turns])
    return order


def build_synthesizer(
    generator: Any,
    sources: SourceSet,
    settings: Mapping[str, Any],
    seed: int,
    number: int = 0,
    critic: Critic | None = None,
) -> Synthesizer:
    """The synthesizer of round ``number``; arguments as in :func:`build_search`."""
    check_label_types([critic], sources)
    seed = round_seed(seed, number)
    synthesizer = Synthesizer(generator, sources, critic=critic, **{'seed': seed, **settings})
    generator.check_steps(synthesizer.num_inference_steps, 'synthesis')
    return synthesizer


class Components:
    """The parts of a GAPHook's loop outside of training, for the step-by-step tools.

    What they search and draw is what the hook does in its first round, given the same weights.

    Args:
        config: A config with one GAPHook in ``custom_hooks``. Its data for evaluation are given the
            classes of its training data, see :func:`~mmgap.datasets.share_classes`.

    Attributes:
        hook: The hook, whose settings hold.
        seed: Seed of every draw: the hook's, or that of ``randomness``, or 0.
        generator: Draws images.
        sources: The training data's labelled, masked images.

    Raises:
        ValueError: If the config has no GAPHook, or several.
    """

    def __init__(self, config: Config) -> None:
        found = gap_hooks(config)
        if len(found) != 1:
            raise ValueError(
                f'custom_hooks must have one mmgap.GAPHook, {config.filename} has {len(found)}'
            )
        set_scope(config)
        share_classes(config)
        self._config = config
        self.hook = HOOKS.build(dict(found[0]))
        seed = (config.get('randomness') or {}).get('seed')
        self.seed = next((s for s in (self.hook.seed, seed) if s is not None), 0)
        dataset = DATASETS.build(without_pools(config.train_dataloader.dataset))
        self.generator = TASK_UTILS.build(dict(self.hook.generator_cfg))
        self.sources = build_sources(dataset, self.generator)

    def target(self, checkpoint: str | None = None) -> TargetModel:
        """The config's model.

        Args:
            checkpoint: Its weights; by default what the config starts training from.

        Raises:
            RuntimeError: If the checkpoint does not fit the model.
        """
        settings = copy.deepcopy(self._config.model)
        name_pretrained(settings)
        if self._config.get('data_preprocessor') is not None:  # as the Runner does
            settings.setdefault('data_preprocessor', self._config.data_preprocessor)
        set_random_seed(self.seed)
        model = MODELS.build(settings)
        checkpoint = checkpoint or self._config.get('load_from')
        if checkpoint is None:
            model.init_weights()
        else:
            allow_checkpoint_history()
            load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
        return build_target(
            model.to(get_device()), self._config, self.hook.target_cfg, self.sources
        )

    @cached_property
    def critic(self) -> Critic | None:
        """The hook's critic, prepared."""
        return build_critic(self.hook.critic_cfg, self.generator, self.sources.classes)

    @cached_property
    def feedback(self) -> list[Feedback]:
        """The hook's terms, prepared."""
        self.prepare(self.hook.feedback)
        return self.hook.feedback

    def prepare(
        self,
        feedback: Sequence[Feedback],
        cache: Path | None = None,
        further: Sequence[Any] = (),
    ) -> None:
        """Prepare terms for this generator; see :func:`prepare_feedback`.

        Args:
            feedback: The terms.
            cache: Folder for features.
            further: Datasets for evaluation beside the config's own.
        """
        settings = [self._config.get(f'{name}_dataloader') for name in ('val', 'test')]
        evaluation = [*(DATASETS.build(s['dataset']) for s in settings if s), *further]
        check_classes(self.sources, evaluation)
        classes = self.sources.classes
        prepare_feedback(feedback, self.generator, classes, evaluation, cache)

    def search(
        self, target: TargetModel, draw: bool = True
    ) -> tuple[PromptSearch, list[SoftPrompt]]:
        """The search and the prompts that it starts from; ``draw`` as in :func:`build_search`."""
        hook = self.hook
        parts = (self.generator, target, self.feedback, self.sources)
        settings = (hook.initial_cfg, hook.search_cfg)
        return build_search(*parts, *settings, self.seed, critic=self.critic, draw=draw)

    def synthesizer(self) -> Synthesizer:
        """The synthesizer."""
        parts = (self.generator, self.sources, self.hook.synthesis_cfg, self.seed)
        return build_synthesizer(*parts, critic=self.critic)
