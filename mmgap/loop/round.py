# SPDX-License-Identifier: Apache-2.0
"""A round: search prompts against a model, draw images with them, report."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmengine import dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import set_random_seed
from torch import nn

from mmgap.configs import one_gap_hook, set_scope
from mmgap.datasets.masked_folders import share_classes
from mmgap.distributed import broadcast_object
from mmgap.feedback import Critic, Feedback
from mmgap.generators import DiffusionGenerator
from mmgap.loop.contact_sheet import picture_round, write_contact_sheet
from mmgap.loop.guards import (
    check_classes,
    check_guidance_images,
    check_label_types,
    check_model_classes,
)
from mmgap.loop.parts import build_critic, build_sources, settings_of, without_pools
from mmgap.loop.report import round_report
from mmgap.loop.settings import GAPSettings
from mmgap.loop.watcher import Watcher
from mmgap.machine import memory, release_memory, training_memory
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.registry import TASK_UTILS
from mmgap.search import FoundPrompt, PromptSearch, aimed_starts, check_ids, initial_prompts
from mmgap.seeds import derive_seed, preserved_rng
from mmgap.sources import Sources
from mmgap.synthesis import SampleGuidance, Synthesizer
from mmgap.targets import TargetModel, build_target, load_model


class Loop:
    """Everything that a round needs but the model, and what a round does.

    :class:`mmgap.GAPHook` says when; commands, benchmark and checks use it step by step. What they
    search and draw is what the hook does in the same round, given the same weights::

        loop = Loop.from_config(Config.fromfile('configs/ap_resnet18_toybirds.py'))
        target = loop.target('epoch_3.pth')
        found = loop.search(target)
        pool = SamplePool('pool')
        loop.synthesize([result.prompt for result in found], 100, pool, target)
        print(loop.report(found, pool))

    Args:
        settings: Those of the run's GAPHook.
        generator: Draws images.
        sources: The training data as conditions of the generator.
        config: The run's config, whose model is the target.
        evaluation: Datasets that the run validates or tests on, or their configs. Guidance must
            not look at their images, and their classes must be those of the training data.
        seed: Seed of every draw.
        features: Folder for features of guidance images that are worth keeping.
    """

    def __init__(
        self,
        settings: GAPSettings,
        generator: DiffusionGenerator,
        sources: Sources,
        config: Config,
        evaluation: Sequence[Any] = (),
        seed: int = 0,
        features: Path | None = None,
    ) -> None:
        self.settings = settings
        self.generator = generator
        self.sources = sources
        self.config = config
        self.evaluation = list(evaluation)
        self.seed = seed
        self.features = features
        self._prepared: dict[str, Any] = {}  # networks that variants need not load again

    @classmethod
    def build(cls, settings: GAPSettings, dataset: Any, **others: Any) -> Loop:
        """Load the generator, and take a dataset's samples as its sources.

        Args:
            settings: Name the generator.
            dataset: What the model is trained on.
            **others: As for the constructor.

        Raises:
            ValueError: If the data cannot be the generator's sources.
            TypeError: If a wrapper of the data does not tell which samples it shows.
        """
        generator: DiffusionGenerator = TASK_UTILS.build(dict(settings.generator))
        return cls(settings, generator, build_sources(dataset, generator), **others)

    @classmethod
    def from_config(cls, config: Config) -> Loop:
        """The loop of a config with one GAPHook in ``custom_hooks``.

        Its data for evaluation are given the classes of its training data, see
        :func:`~mmgap.datasets.share_classes`. The seed is the hook's, or that of ``randomness``,
        or 0.

        Raises:
            ValueError: If the config has no GAPHook, or several.
        """
        hook = one_gap_hook(config)
        set_scope(config)
        share_classes(config)
        settings = settings_of(hook)
        seeds = (settings.seed, (config.get('randomness') or {}).get('seed'), 0)
        loaders = [config.get(f'{name}_dataloader') for name in ('val', 'test')]
        return cls.build(
            settings,
            DATASETS.build(without_pools(config.train_dataloader.dataset)),
            config=config,
            evaluation=[loader['dataset'] for loader in loaders if loader],
            seed=next(seed for seed in seeds if seed is not None),
        )

    def variant(
        self,
        evaluation: Sequence[Any] | None = None,
        features: Path | None = None,
        **settings: Any,
    ) -> Loop:
        """The same generator and sources with other settings.

        Args:
            evaluation: Further datasets that guidance must not look at.
            features: Folder for features.
            **settings: Fields of :class:`GAPSettings` but ``generator``.

        Raises:
            ValueError: If they name a generator.
        """
        if 'generator' in settings:
            raise ValueError('a variant has the generator of its loop; build another Loop for it')
        other = copy.copy(self)
        other._prepared = dict(self._prepared)
        other.settings = replace(self.settings, **settings)
        other.evaluation = [*self.evaluation, *(evaluation or ())]
        other.features = features or self.features
        return other

    @property
    def feedback(self) -> list[Feedback]:
        """The prepared terms.

        Raises:
            ValueError: If a guidance image is among the evaluation images, the evaluation has other
                classes, or a term is for another type of labels.
        """
        return self._terms(self.settings.feedback)

    @property
    def guidance(self) -> SampleGuidance | None:
        """What steers images while they are drawn; None for nothing.

        Raises:
            ValueError: As for :attr:`feedback`, or if no term looks at images.
        """
        settings = self.settings.synthesis.guidance
        if settings is None:
            return None
        terms = self.feedback if settings.feedback is None else self._terms(settings.feedback)
        return SampleGuidance(terms, settings)

    def _terms(self, configs: Sequence[Mapping[str, Any]]) -> list[Feedback]:
        wanted = [list(configs), self.features, len(self.evaluation)]
        return self._once(f'feedback {wanted}', lambda: self._prepare_feedback(configs))

    def _prepare_feedback(self, configs: Sequence[Mapping[str, Any]]) -> list[Feedback]:
        terms = [TASK_UTILS.build(dict(config)) for config in configs]
        evaluation = [
            DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
            for dataset in self.evaluation
        ]
        check_classes(self.sources, evaluation)
        if not dist.is_main_process():
            dist.barrier()  # the main one first: the others read the features that it writes
        try:
            for term in terms:
                term.prepare(self.generator, self.sources.classes, self.features)
        finally:
            if dist.is_main_process():
                dist.barrier()
        check_guidance_images(terms, evaluation)
        return terms

    @property
    def critic(self) -> Critic | None:
        """The prepared critic: the settings' or, where they name none, the generator's."""
        settings, classes = self.settings.critic, self.sources.classes
        return self._once(
            f'critic {settings}', lambda: build_critic(settings, self.generator, classes)
        )

    def _once(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self._prepared:
            self._prepared[name] = build()
        return self._prepared[name]

    def prepare(self) -> None:
        """Load what feedback and critic need; else that is done when they are first asked for."""
        _ = self.feedback, self.guidance, self.critic

    def target(self, checkpoint: str | None = None, model: nn.Module | None = None) -> TargetModel:
        """The config's model, seen from the image.

        Args:
            checkpoint: Its weights; by default what the config starts training from.
            model: The model itself, if there is one already.

        Raises:
            RuntimeError: If the checkpoint does not fit the model.
            ValueError: If neither settings nor pipeline tell the size of its input.
        """
        if model is None:
            set_random_seed(self.seed)
            model = load_model(self.config, checkpoint or self.config.get('load_from'))
        target = build_target(model, self.config, self.settings.input, self.sources.label_type)
        check_model_classes(target.model, self.sources)
        return target

    def prompt_search(self, target: TargetModel, round_index: int = 0) -> PromptSearch:
        """The search of a round.

        Raises:
            ValueError: If the settings do not fit each other or the generator.
        """
        check_label_types([*self.feedback, self.critic], self.sources)
        self.generator.check_steps(self.settings.search.num_inference_steps, 'search')
        return PromptSearch(
            self.generator,
            target,
            self.feedback,
            self.sources,
            self.settings.search,
            seed=derive_seed(self.seed, 'round', round_index),
            critic=self.critic,
            split_seed=derive_seed(self.seed, 'round', 0),
        )

    def initial_prompts(
        self, search: PromptSearch, round_index: int = 0, draw: bool = True
    ) -> list[SoftPrompt]:
        """The prompts that a round's search starts from; their ids begin with the round.

        Args:
            search: The search.
            round_index: The round.
            draw: Whether images may be drawn to ``aim``. Without, starts are taken in turn.
        """
        aims = draw and search.settings.aim > 0
        prompts = initial_prompts(
            self.generator.prompts,
            self.sources.classes,
            search.settings,
            search.seed,
            prefix=f'r{round_index}-',
            order=aimed_starts(search, self.critic, round_index) if aims else None,
            round_index=round_index,
        )
        check_ids(prompts)
        return prompts

    def synthesizer(self, round_index: int = 0) -> Synthesizer:
        """The synthesizer of a round.

        Raises:
            ValueError: If the settings do not fit the generator.
        """
        guidance = self.guidance
        judges = [self.critic, *(guidance.feedback if guidance else ())]
        check_label_types(judges, self.sources)
        self.generator.check_steps(self.settings.synthesis.num_inference_steps, 'synthesis')
        return Synthesizer(
            self.generator,
            self.sources,
            self.settings.synthesis,
            critic=self.critic,
            seed=derive_seed(self.seed, 'round', round_index),
            guidance=guidance,
        )

    def search(
        self,
        target: TargetModel,
        round_index: int = 0,
        checkpoint: Path | None = None,
        bank: PromptBank | None = None,
        watcher: Watcher | None = None,
    ) -> list[FoundPrompt]:
        """Search the prompts of a round.

        Args:
            target: The model to search against.
            round_index: The round.
            checkpoint: File that the search saves itself to and goes on from.
            bank: Where the found prompts go.
            watcher: Is told of each step.

        Raises:
            NonFiniteLossError: If a loss or a gradient is NaN or Inf.
        """
        search = self.prompt_search(target, round_index)
        prompts = self.initial_prompts(search, round_index)
        on_step = None
        if watcher is not None and dist.is_main_process():
            on_step = partial(watcher.searched, round_index)
        return search.run(prompts, checkpoint=checkpoint, bank=bank, on_step=on_step)

    def synthesize(
        self,
        prompts: Sequence[SoftPrompt],
        count: int,
        pool: SamplePool,
        target: TargetModel | None = None,
        round_index: int = 0,
        keep_drawn: bool = False,
    ) -> int:
        """Draw the images of a round into a pool, see :meth:`~mmgap.synthesis.Synthesizer.run`.

        Returns:
            The number of images drawn now, those that the critic dropped included.
        """
        return self.synthesizer(round_index).run(
            prompts,
            count,
            pool,
            target,
            self.feedback if target is not None else (),
            round_index,
            keep_drawn,
        )

    def run(
        self,
        target: TargetModel,
        folder: Path,
        round_index: int = 0,
        keep_drawn: bool = False,
        watcher: Watcher | None = None,
    ) -> dict[str, Any]:
        """A whole round; goes on where an interrupted one stopped.

        Args:
            target: The model to search against.
            folder: Gets ``prompts/``, ``search/``, ``pool/``, ``round_N.png`` and ``round_N/``.
            round_index: The round.
            keep_drawn: Whether planned images stay that were drawn in another way.
            watcher: Is told of steps and pictures.

        Returns:
            The report, with the ``seconds`` of ``search`` and ``synthesis``.
        """
        pool, began = SamplePool(folder / 'pool'), time.monotonic()
        checkpoint = folder / 'search' / f'round_{round_index}.safetensors'
        bank = PromptBank(folder / 'prompts')
        found = self.search(target, round_index, checkpoint, bank, watcher)
        searched = time.monotonic()
        prompts, count = [result.prompt for result in found], self.settings.images_of(round_index)
        self.synthesize(prompts, count, pool, target, round_index, keep_drawn)
        seconds = dict(search=searched - began, synthesis=time.monotonic() - searched)
        sheet = folder / f'round_{round_index}.png'
        report = self.report(found, pool, round_index, sheet, watcher)
        return dict(report, seconds=seconds)

    def report(
        self,
        found: Sequence[FoundPrompt],
        pool: SamplePool,
        round_index: int = 0,
        sheet: Path | None = None,
        watcher: Watcher | None = None,
    ) -> dict[str, Any]:
        """What a round found and drew.

        Args:
            found: Its prompts.
            pool: With its images.
            round_index: The round.
            sheet: PNG file for a picture of it: sources beside images, and each prompt along its
                search. None for no picture. A folder of its name gets the images small and without
                words, see :meth:`~mmgap.loop.contact_sheet.RoundPictures.save`.
            watcher: Is told of the pictures.

        Returns:
            ``prompts`` (their summaries), ``pairs`` (what the pairs of images in the picture
            are, in order) and what :func:`~mmgap.loop.report.round_report` tells.
        """
        pairs: list[dict[str, str]] = []
        if sheet is not None and dist.is_main_process():
            pictures = picture_round(
                pool,
                self.sources,
                self.generator,
                found,
                num_inference_steps=self.settings.search.num_inference_steps,
                batch_size=self.settings.search.batch_size,
                round=round_index,
            )
            write_contact_sheet(sheet, pictures)
            pairs, small = pictures.pairs(), pictures.smaller()
            small.save(sheet.with_suffix(''))
            if watcher is not None:
                watcher.pictured(round_index, small)
        pairs = broadcast_object(pairs)
        prompts = [result.summary(self.sources.classes) for result in found]
        return dict(
            prompts=prompts,
            pairs=pairs,
            **round_report(SamplePool(pool.folder), round_index, self.critic),
        )

    def try_out(self, target: TargetModel, round_index: int = 0, draw: bool = True) -> None:
        """Set up a round and send one image all the way: what does not fit shall fail now.

        Nothing changes: the states of all random generators are put back.

        Args:
            target: The model to search against.
            round_index: The round.
            draw: False only sets up search and synthesis.
        """
        self.sources.load(sorted({0, len(self.sources) // 2, len(self.sources) - 1}))
        search, synthesizer = self.prompt_search(target, round_index), self.synthesizer(round_index)
        prompts = self.initial_prompts(search, round_index, draw=False)
        if not draw:
            return
        began = time.monotonic()
        try:
            with preserved_rng():
                search.try_out(prompts)
                synthesizer.try_out(prompts, target, self.feedback)
        except Exception as error:
            error.add_note(
                '[gap] This was one image that went through search and synthesis before training, '
                'to see that generator, model and settings fit.'
            )
            raise
        _log(f'one image went through search and synthesis in {time.monotonic() - began:.1f} s')

    def training_memory(self) -> int:
        """Bytes of the GPU that training took at its peak, the generator's own left out."""
        own = 0 if self.generator.device.type == 'cpu' else self.generator.memory()
        return training_memory() - own

    def wake(self) -> None:
        """Bring the generator back to where it runs."""
        self.generator.to(self.generator.home)

    def make_room(self, training: int | None) -> None:
        """Let the generator wait on the CPU while the model trains, unless both fit on the GPU.

        Args:
            training: Bytes that training takes at its peak; None while nobody knows.
        """
        generator = self.generator
        if generator.device.type == 'cpu':
            return
        stays = training is not None and training + generator.memory() <= memory()
        if not stays:
            generator.to('cpu')
        release_memory()
        peak = 'not known yet' if training is None else f'{training / 2**30:.1f} GiB at its peak'
        _log(
            f'the generator ({generator.memory() / 2**30:.1f} GiB) waits on '
            f'{"the GPU" if stays else "the CPU"} until the next round; training takes {peak}, '
            f'the GPU has {memory() / 2**30:.1f} GiB'
        )


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(f'[gap] {message}')
