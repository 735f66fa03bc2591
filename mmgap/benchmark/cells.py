# SPDX-License-Identifier: Apache-2.0
"""The cells of a benchmark: make a method's images, train on them, evaluate; each only once."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS

from mmgap.benchmark.coverage import Coverage
from mmgap.benchmark.images import Folders, draw_images, put_real
from mmgap.benchmark.methods import Method, check_train, contents_of, read_methods
from mmgap.benchmark.pools import counts_of, evaluations_of
from mmgap.benchmark.training import base_config, cell_config, inject, train_and_test
from mmgap.compat import name_pretrained
from mmgap.configs import gap_hooks, is_gap_hook, name_of
from mmgap.datasets import SyntheticDataset
from mmgap.files import fingerprint, plain, read_json, write_json
from mmgap.injection import InjectionSettings, judge_images
from mmgap.loop import GAPSettings, Loop
from mmgap.loop.parts import settings_of
from mmgap.pool import SamplePool
from mmgap.sources import Sources, SourceSet
from mmgap.typed import build_settings, change_settings

# What of a config decides the base checkpoint, and so the images; the rest are helpers' names, and
# what is tested on.
TRAINING = (
    'custom_hooks',
    'data_preprocessor',
    'load_from',
    'model',
    'optim_wrapper',
    'param_scheduler',
    'test_dataloader',
    'train_cfg',
    'train_dataloader',
)
SAMPLERS = ('DefaultSampler', 'InfiniteSampler')
# What of ``benchmark`` decides no cell, or is in the key of each.
UNRELATED = ('methods', 'compare', 'injections', 'coverage', 'evaluate_prompts')


class Benchmark:
    """Everything that the cells of one config share.

    Args:
        config: A config with one GAPHook and a ``benchmark`` section.
        out: Where results go.
        budgets: Image budgets.

    Attributes:
        config: The config.
        settings: Its ``benchmark`` section.
        methods: The methods by name.
        compare: Names of methods that the report pairs with every other one.
        injections: Ways for images to enter training by name: those of ``benchmark.injections``,
            and ``None``, the hook's own.
        out: Where results go.
        budgets: Image budgets, the smallest first.

    Raises:
        ValueError: If the fragment of a method, ``benchmark.train`` or the sampler of the training
            data is not valid, or ``out`` holds the results of another config, generator or world.
    """

    def __init__(self, config: Config, out: Path, budgets: Sequence[int]) -> None:
        name_pretrained(config.model)
        self.config = config
        self.settings = config.benchmark
        check_train(self.settings.get('train') or {}, 'benchmark.train')
        sampler = name_of((config.train_dataloader.get('sampler') or {}).get('type', SAMPLERS[0]))
        if sampler not in SAMPLERS:
            raise ValueError(
                f'train_dataloader.sampler is a {sampler}; cells draw all images alike, with '
                f'InfiniteSampler, and their base checkpoint must too: take one of {SAMPLERS}'
            )
        self.methods = read_methods(self.settings.methods)
        compared = self.settings.get('compare') or []
        self.compare = [compared] if isinstance(compared, str) else list(compared)
        unknown = sorted(set(self.compare) - set(self.methods))
        if unknown:
            raise ValueError(
                f'benchmark.compare names {unknown}, no methods; there are {list(self.methods)}'
            )
        self.injections: dict[str | None, InjectionSettings] = {None: self.hook.injection}
        for name, fragment in (self.settings.get('injections') or {}).items():
            changes = {**vars(self.hook.injection), **fragment}
            self.injections[name] = build_settings(InjectionSettings, changes, name)
        self.out = out
        self.budgets = sorted(budgets)
        self._loops: dict[str, Loop] = {}  # one at most
        self._coverage: Coverage | None = None
        self._costs: dict[tuple[str, int], float] = {}
        # What images depend on, and what cells do beside them.
        whole = copy.deepcopy(config.to_dict())
        shared = {name: whole[name] for name in TRAINING if name in whole}
        cells = whole['benchmark']
        for unrelated in UNRELATED:
            cells.pop(unrelated, None)
        cells['test_evaluator'] = whole.get('test_evaluator')
        cells['test'] = shared['test_dataloader']['dataset'].pop('split', None)
        for hook in gap_hooks(shared):
            hook.pop('injection', None)
        loop = self.loop(0)
        world = loop.sources.dataset.metainfo.get('world_version')
        parts = [shared, loop.generator.fingerprint(), world, *contents_of(shared)]
        self._shared = fingerprint(parts)
        self.injections = {
            name: injection.for_labels(loop.sources.label_type)
            for name, injection in self.injections.items()
        }
        self._cells = fingerprint(cells)
        known = out / 'base' / 'key.json'
        if known.exists() and read_json(known) != self._shared:
            raise ValueError(
                f'{out} holds results of another config, generator or world; choose another --out'
            )
        if not known.exists():
            write_json(known, self._shared)

    @property
    def hook(self) -> GAPSettings:
        """Settings of the GAPHook."""
        return settings_of(gap_hooks(self.config)[0])

    def key(self, method: str) -> str:
        """Name what a method's images depend on: with another key they are others."""
        own = self.methods[method]
        # Its rounds train in between, as cells do.
        if own.rounds > 1:
            between = plain(self.injections[None].counted)
            # Each round has its part of the budget.
            return own.key(fingerprint([self._shared, self._cells, between, self.budgets]))
        return own.key(self._shared)

    def cell_key(self, method: str, injection: str | None = None) -> str:
        """Name what a method's cells depend on."""
        own = self.methods[method].makes_images
        settings = plain(self.injections[injection].counted) if own else None
        return fingerprint([self.key(method), self._cells, settings])

    def cell(
        self, method: str, budget: int, seed: int, layers: str, injection: str | None = None
    ) -> dict[str, Any]:
        """Run one cell, or read it if it has been run.

        Args:
            method: Name of the method.
            budget: Number of images; 0 for methods that make none.
            seed: The seed.
            layers: Layers that are trained: ``'last'`` or ``'all'``.
            injection: How the images enter training, a name in ``injections``.

        Raises:
            ValueError: If the cell has been run with other settings.
        """
        path = self.path(method, budget, seed, layers, injection)
        if path.exists():
            cell = read_json(path)
            if cell.pop('key') != self.cell_key(method, injection):
                raise ValueError(
                    f'{path} was made with other settings of {method!r}; choose another --out, or '
                    'delete it'
                )
            return cell
        pool, images, dropped, evaluations = None, budget, 0, None
        if self.methods[method].makes_images:
            pool, images = self.images(method, seed, budget)
            evaluations = evaluations_of(pool, images)
            images, dropped = counts_of(pool, images)
        self.base(seed)  # which is of no cell
        began = time.monotonic()
        config = self.training(method, seed, layers, pool, images, injection)
        report, others = train_and_test(config, evaluate=self.settings.get('evaluate') or {})
        cell = dict(method=method, budget=budget, seed=seed, layers=layers, injection=injection)
        report.pop('metrics')
        cell.update(report)
        cell.update(images=images, dropped=dropped, evaluations=evaluations)
        cell.update(seconds=time.monotonic() - began)
        cell['val_worst_group'] = others['val']['worst_group'] if 'val' in others else None
        cell['others'] = others
        write_json(path, dict(cell, key=self.cell_key(method, injection)))
        return cell

    def path(
        self, method: str, budget: int, seed: int, layers: str, injection: str | None = None
    ) -> Path:
        """Where a cell is kept."""
        last = f'{layers}-{injection}' if injection else layers
        return self.out / 'cells' / f'{method}-{budget}-{seed}-{last}.json'

    def training(
        self,
        method: str,
        seed: int,
        layers: str,
        pool: Path | None,
        images: int,
        injection: str | None = None,
    ) -> Config:
        """The config that trains on from the base checkpoint of a seed.

        Args:
            method: Name of the method whose changes to the training hold.
            seed: The seed.
            layers: ``'last'`` or ``'all'``.
            pool: The images.
            images: How many of them.
            injection: How they enter training.
        """
        changes, base = self.methods[method].train or {}, self.base(seed)
        config = cell_config(self.config, seed, changes=changes, layers=layers, base=base)
        if pool is not None:
            settings = self.injections[injection]
            if settings.mode == 'auto':
                settings = self._chosen(settings, seed, pool, images)
            inject(config, pool, images=images, settings=settings)
        return config

    def _chosen(
        self, settings: InjectionSettings, seed: int, pool: Path, images: int
    ) -> InjectionSettings:
        """The settings in the mode that ``auto`` takes: how long to train depends on it."""
        loop = self.loop(seed)
        target = loop.target(str(self.base(seed)))
        real = loop.sources.dataset
        pipeline = Compose(copy.deepcopy(self.config.test_dataloader.dataset.pipeline))
        data = SyntheticDataset(str(pool), images, metainfo=real.metainfo)
        found = judge_images(target.model, data, real, settings, pipeline, seed)
        return settings.in_mode(found['mode'])

    def base(self, seed: int) -> Path:
        """The checkpoint that all methods of a seed start from: the config without its hook."""
        path = self.out / 'base' / f'seed_{seed}.pth'
        if not path.exists():
            config = base_config(self.config, seed, length=self.hook.start)
            report, _ = train_and_test(config, keep=path)
            write_json(path.with_suffix('.json'), report)
        return path

    def images(self, method: str, seed: int, budget: int) -> tuple[Path, int]:
        """The pool of a cell, and how many of its images it trains on at most.

        Those are the budget, but for methods that get the cost of another one.
        """
        own = self.methods[method]
        if own.cost_of is None:
            return self.pool(method, seed), budget
        drawn = self._affordable(own, seed, budget)
        if own.selects:
            return self.pool(method, seed, budget, overdraw=max(1, drawn // budget)), budget
        most = self._affordable(own, seed, max(self.budgets))
        return self.pool(method, seed, max(most, budget)), max(drawn, budget)

    def _affordable(self, method: Method, seed: int, budget: int) -> int:
        """Images that a method with ``cost_of`` can draw for what the other one's cost."""
        paid: Any = method.cost_of
        spent = evaluations_of(self.pool(paid.name, seed), budget)
        if spent is None:
            folders = [self.folder(kind, paid.name, seed) for kind in ('pools', 'search')]
            raise ValueError(
                f'the prompts or images of {paid.name!r} were made by an older version, which did '
                f'not count network evaluations; delete {folders[0]} and {folders[1]}'
            )
        return int(spent / self._cost_of_one(method, seed) + 1e-6)

    def _cost_of_one(self, method: Method, seed: int) -> float:
        """Network evaluations of an image that a method draws: as many with any prompt."""
        if (method.name, seed) not in self._costs:
            loop = self.loop(seed, method.name)
            own = dict(method.synthesis or {}, overdraw=1, keep=None)
            synthesis = change_settings(loop.settings.synthesis, own, 'synthesis')
            drawing = loop.variant(synthesis=synthesis)
            guided = drawing.guidance is not None and drawing.guidance.needs_target
            target = loop.target(str(self.base(seed))) if guided else None
            counter, before = loop.generator.evaluations, loop.generator.evaluations.counts()
            prompt = loop.generator.prompts.random_prompt(4, seed=0, id='one')
            drawing.synthesizer().try_out([prompt], target)
            count = 2 if loop.generator.compiled else 1
            self._costs[method.name, seed] = counter.total(counter.since(before)) / count
        return self._costs[method.name, seed]

    def pool(
        self, method: str, seed: int, count: int | None = None, overdraw: int | None = None
    ) -> Path:
        """The images of a method and seed; the pool of the largest budget serves all.

        Args:
            method: Name of the method.
            seed: The seed.
            count: How many images, the largest budget by default.
            overdraw: As in ``synthesis``; by default the method's. Each has a pool of its own.
        """
        folder = self.folder('pools', method, seed)
        if overdraw is not None:
            folder = folder.with_name(f'{folder.name}-x{overdraw}')
        count, file = count or max(self.budgets), folder / 'about.json'
        known = read_json(file) if file.exists() else {}
        if known.get('images', 0) >= count:
            if known.get('coverage_of') != self.covering:
                write_json(file, {**known, **self._covered(folder)})
            return folder
        began = time.monotonic()
        facts = self._fill(SamplePool(folder), method, seed, count, overdraw)
        facts.update(method=method, seed=seed, images=count, key=self.key(method))
        facts.update(self._covered(folder))
        seconds = known.get('seconds', 0.0) + time.monotonic() - began  # of a smaller budget's too
        write_json(file, dict(facts, seconds=seconds))
        return folder

    def _fill(
        self, pool: SamplePool, name: str, seed: int, count: int, overdraw: int | None = None
    ) -> dict[str, Any]:
        """Make the images of a method; returns what is to be known of them."""
        method, evaluation = self.methods[name], self.evaluation()
        if overdraw is not None:
            own = dict(method.synthesis or {}, overdraw=overdraw)
            if overdraw == 1:
                own['keep'] = None
            method = replace(method, synthesis=own)
        if method.dataset is not None:
            settings = copy.deepcopy(dict(method.dataset))
            if 'type' not in settings:
                settings = {**copy.deepcopy(self.config.test_dataloader.dataset), **settings}
            dataset, loop = DATASETS.build(settings), self.loop(seed)
            sources: Sources = (
                loop.generator.sources(dataset)
                if loop.sources.label_type == 'depth'
                # They are stored as they are, so nothing need be known of what to keep.
                else SourceSet(dataset, loop.generator.size, masked=False)
            )
            put_real(pool, sources, method=name, count=count, evaluation=evaluation)
            return {}
        finder = method.finder.name
        return draw_images(
            pool,
            method,
            self.loop(seed, name),
            count=count,
            checkpoint=lambda round_index: self._checkpoint(name, seed, round_index, pool.folder),
            folders=Folders(
                prompts=self.folder('prompts', finder, seed),
                search=self.folder('search', finder, seed),
                features=self.out / 'features' / str(seed),
            ),
            evaluation=evaluation,
            evaluate_prompts=self.settings.get('evaluate_prompts', True),
        )

    @property
    def covering(self) -> str | None:
        """Name what coverage is measured of; None for nothing."""
        settings = self.settings.get('coverage')
        return None if settings is None else fingerprint([plain(settings), max(self.budgets)])

    def _covered(self, pool: Path) -> dict[str, Any]:
        """Density and coverage of a pool, where ``benchmark.coverage`` says of what."""
        found: dict[str, Any] = dict(coverage=None, density=None, coverage_of=self.covering)
        if self.covering is None:
            return found
        if self._coverage is None:
            test, size = self.config.test_dataloader.dataset, self.loop(0).generator.size
            self._coverage = Coverage(**self.settings.coverage, test=test, size=size)
        return {**found, **self._coverage(SamplePool(pool), max(self.budgets))}

    def _checkpoint(self, method: str, seed: int, round_index: int, pool: Path) -> Path:
        """What a round searches against: later ones a model trained with the images so far."""
        if round_index == 0:
            return self.base(seed)
        path = self.folder('rounds', method, seed) / f'{round_index}.pth'
        if not path.exists():
            samples = SamplePool(pool).samples
            images = sum(sample.kept for sample in samples if sample.round < round_index)
            config = self.training(method, seed, 'all', pool, images)
            train_and_test(config, keep=path, test=False)
        return path

    def folder(self, kind: str, method: str, seed: int) -> Path:
        """Where something of a method and seed is kept; other settings have another folder."""
        return self.out / kind / f'{method}-{seed}-{self.key(method)[:8]}'

    def loop(self, seed: int, method: str | None = None) -> Loop:
        """The hook's loop with a seed, and a method's changes to the generator."""
        changes = dict(self.methods[method].generator or {}) if method else {}
        key = fingerprint([seed, changes])
        if key not in self._loops:
            config = copy.deepcopy(self.config)
            config.randomness = dict(seed=seed)
            for hook in config.custom_hooks:
                hook.pop('seed', None)  # it would be the same for all seeds of the benchmark
                if is_gap_hook(hook):
                    hook['generator'].update(copy.deepcopy(changes))
            self.release()
            self._loops[key] = Loop.from_config(config)
        return self._loops[key]

    def release(self) -> None:
        """Let go of generator and sources, which take most of the memory, until they are needed."""
        self._loops.clear()

    def evaluation(self) -> list[Any]:
        """The datasets that cells are evaluated on."""
        test = self.config.test_dataloader.dataset
        changes = [{}, *(self.settings.get('evaluate') or {}).values()]
        return [DATASETS.build({**copy.deepcopy(test), **change}) for change in changes]
