# SPDX-License-Identifier: Apache-2.0
"""One cell of a benchmark: make a method's images, train on them, evaluate."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.runner import Runner, TestLoop

import mmgap.benchmark.training  # noqa: F401
from mmgap.benchmark.images import generate, put_real
from mmgap.compat import name_pretrained
from mmgap.configs import gap_hooks, is_gap_hook, name_of
from mmgap.feedback import read_sentences
from mmgap.files import fingerprint, write_json
from mmgap.hooks.components import Components
from mmgap.hooks.summary import group_report
from mmgap.pool import SamplePool

# What a method's fragment may say.
KEYS = (
    'about',  # what it is, for the tables
    'search',  # changes to the hook's search: prompts are searched for
    'feedback',  # terms instead of the hook's
    'prompts_of',  # take the prompts that another method has found
    'initial',  # changes to the hook's search: its starting points are drawn, unsearched
    'texts',  # sentences, a list or a file; beside found prompts they fill up the number
    'synthesis',  # changes to the hook's synthesis
    'rounds',  # rounds that its searches are spread over, each against the model trained on so far
    'generator',  # changes to the hook's generator
    'critic',  # a critic instead of the hook's
    'dataset',  # real images instead of generated ones; without a type, changes to the test data
    'train',  # changes to the training config, for methods that make no images
)
# What a cell sets itself; a method that changed it would not be compared on equal terms.
FIXED = ('train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks', 'load_from', 'randomness')


def is_by_epoch(train_cfg: Mapping[str, Any]) -> bool:
    """Whether a config's training counts epochs, as MMEngine's Runner reads it."""
    if 'type' in train_cfg:
        return 'IterBased' not in name_of(train_cfg['type'])
    return train_cfg.get('by_epoch', True)


def measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The group report; for depth also ``abs_rel`` and ``rmse`` (metres) of each group."""
    report = group_report(metrics)
    if report['measure'] == 'abs_rel':
        rmse = {group: report['metrics'][f'{group}/rmse'] for group in report['groups']}
        report.update(abs_rel=report['groups'], rmse=rmse)
    return report


class Benchmark:
    """Everything that the cells of one config share.

    Args:
        config: A config with one GAPHook and a ``benchmark`` section.
        out: Where results go.
        budgets: Image budgets.

    Raises:
        ValueError: If a method's fragment says something unknown, or ``out`` holds the results of
            another config, generator or world.
    """

    def __init__(self, config: Config, out: Path, budgets: Sequence[int]) -> None:
        name_pretrained(config.model)
        self.config = config
        self.settings = config.benchmark
        self.methods: Mapping[str, Any] = self.settings.methods
        for name in self.methods:
            self._check_fragment(name)
        compared = self.settings.get('compare') or []
        # What is paired with every other method, in the report alone.
        self.compare = [compared] if isinstance(compared, str) else list(compared)
        unknown = sorted(set(self.compare) - set(self.methods))
        if unknown:
            raise ValueError(
                f'benchmark.compare names {unknown}, no methods; there are {list(self.methods)}'
            )
        self.out = out
        self.budgets = sorted(budgets)
        self._components: tuple[int, Components] | None = None
        shared = copy.deepcopy(config.to_dict())
        for unrelated in ('methods', 'compare'):  # the first is in each method's own key
            shared['benchmark'].pop(unrelated, None)
        parts = self.parts(0)
        world = parts.sources.dataset.metainfo.get('world_version')
        self._shared = fingerprint([shared, parts.generator.fingerprint(), world])
        known = out / 'base' / 'key.json'
        if known.exists() and json.loads(known.read_text()) != self._shared:
            raise ValueError(
                f'{out} holds results of another config, generator or world; choose another --out'
            )
        if not known.exists():
            write_json(known, self._shared)

    @property
    def hook(self) -> Mapping[str, Any]:
        """Config of the GAPHook."""
        return gap_hooks(self.config)[0]

    def makes_images(self, method: str) -> bool:
        """Whether budgets mean anything to a method."""
        return bool(
            {'search', 'prompts_of', 'initial', 'texts', 'dataset'} & set(self.methods[method])
        )

    def key(self, method: str) -> str:
        """Names the config and the method's fragment: cells with another key are another cell."""
        fragment = dict(self.methods[method])
        fragment.pop('about', None)
        if 'texts' in fragment:
            fragment['texts'] = self.texts(method)
        parent = fragment.get('prompts_of')
        return fingerprint([self._shared, fragment, self.key(parent) if parent else None])

    def _check_fragment(self, name: str) -> None:
        fragment = self.methods[name]
        unknown = sorted(set(fragment) - set(KEYS))
        if unknown:
            raise ValueError(f'method {name!r} has unknown keys {unknown}; there are {KEYS}')
        fixed = [key for key in fragment.get('train', {}) if key.split('.')[0] in FIXED]
        if fixed:
            raise ValueError(f'method {name!r} must not change {fixed}: all are trained alike')
        rounds = fragment.get('rounds', 1)
        if rounds < 1 or (rounds > 1 and 'search' not in fragment):
            raise ValueError(
                f'method {name!r} has rounds={rounds}; there must be one at least, and several '
                'need a search of its own'
            )
        parent = fragment.get('prompts_of')
        if parent is not None and not {'search', 'initial'} & set(self.methods.get(parent, ())):
            raise ValueError(f'method {name!r} takes the prompts of {parent!r}, which finds none')

    def texts(self, method: str) -> list[str]:
        """A method's sentences."""
        texts = self.methods[method].get('texts', ())
        return read_sentences(texts) if isinstance(texts, str) else list(texts)

    def cell(self, method: str, budget: int, seed: int, layers: str) -> dict[str, Any]:
        """Run one cell, or read it if it has been run.

        Raises:
            ValueError: If the cell has been run with other settings.
        """
        path = self.path(method, budget, seed, layers)
        if path.exists():
            cell = json.loads(path.read_text())
            self._check(path, cell.pop('key'), method)
            return cell
        pool = self.pool(method, seed) if self.makes_images(method) else None
        began = time.time()
        images, dropped = (budget, 0) if pool is None else self.counts(pool, budget)
        config = self.training(method, seed, layers, pool, images)
        report, others = self.run(config, evaluate=self.settings.get('evaluate') or {})
        cell = dict(method=method, budget=budget, seed=seed, layers=layers)
        report.pop('metrics')
        cell.update(report)
        cell.update(images=images, dropped=dropped, seconds=time.time() - began)
        cell['val_worst_group'] = others['val']['worst_group'] if 'val' in others else None
        cell['others'] = others
        write_json(path, dict(cell, key=self.key(method)))
        return cell

    def path(self, method: str, budget: int, seed: int, layers: str) -> Path:
        """Where a cell is kept."""
        return self.out / 'cells' / f'{method}-{budget}-{seed}-{layers}.json'

    def training(
        self, method: str, seed: int, layers: str, pool: Path | None, images: int
    ) -> Config:
        """The config that trains on from the base checkpoint of a seed.

        Args:
            method: Whose changes to the training hold.
            seed: The seed.
            layers: ``'last'`` or ``'all'``.
            pool: Images that make up the hook's ``ratio`` of each batch.
            images: How many of them.
        """
        config = self.train_config(seed)
        for changes in (self.settings, self.methods[method]):
            config.merge_from_dict(copy.deepcopy(dict(changes.get('train', {}))))
        if pool is not None:
            config.train_dataloader.dataset = dict(
                type='mmgap.SyntheticMixDataset',
                dataset=config.train_dataloader.dataset,
                pool=str(pool),
                budget=images,
                ratio=self.hook.get('ratio', 0.5),
            )
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        config.train_cfg = dict(by_epoch=False, max_iters=self.settings.steps)
        config.optim_wrapper = dict(optimizer=dict(self.settings.optimizers[layers]))
        if self.settings.get('autocast'):
            config.optim_wrapper.update(type='AutocastOptimWrapper', dtype=self.settings.autocast)
        # Without decay the last steps' noise decides the worst group.
        decay = dict(type='CosineAnnealingLR', by_epoch=False, T_max=self.settings.steps)
        config.param_scheduler = decay
        config.load_from = str(self.base(seed))
        config.custom_hooks = [dict(type='ChannelsLast')]
        if layers == 'last':
            config.custom_hooks.append(
                dict(type='LastLayerOnly', prefix=self.settings.get('last_layer', 'head.'))
            )
        return config

    @staticmethod
    def counts(pool: Path, budget: int) -> tuple[int, int]:
        """Images kept and dropped until the budget was full, or all where it never is."""
        kept = dropped = 0
        for sample in SamplePool(pool).samples:
            if kept == budget:
                break
            kept += sample.kept
            dropped += not sample.kept
        return kept, dropped

    def base(self, seed: int) -> Path:
        """The checkpoint that all methods of a seed start from: the config without its hook."""
        path = self.out / 'base' / f'seed_{seed}.pth'
        if not path.exists():
            config = self.train_config(seed)
            start = self.hook.get('start', 1)
            by_epoch = is_by_epoch(self.config.train_cfg)
            length = dict(max_epochs=start) if by_epoch else dict(max_iters=start)
            config.train_cfg = dict(by_epoch=by_epoch, **length)
            report, _ = self.run(config, keep=path)
            write_json(path.with_suffix('.json'), report)
        return path

    def pool(self, method: str, seed: int) -> Path:
        """The images of a method and seed; the pool of the largest budget serves all."""
        folder = self.folder('pools', method, seed)
        about = folder / 'about.json'
        if about.exists() and json.loads(about.read_text())['images'] >= max(self.budgets):
            return folder
        began = time.time()
        make = put_real if 'dataset' in self.methods[method] else generate
        facts = make(self, method, seed, folder)
        facts.update(method=method, seed=seed, images=max(self.budgets), key=self.key(method))
        write_json(about, dict(facts, seconds=time.time() - began))
        return folder

    def folder(self, kind: str, method: str, seed: int) -> Path:
        """Where something of a method and seed is kept; other settings have another folder."""
        return self.out / kind / f'{method}-{seed}-{self.key(method)[:8]}'

    def parts(self, seed: int, method: str | None = None) -> Components:
        """Generator, sources and settings of a seed, with a method's changes to the generator."""
        changes = self.methods[method].get('generator', {}) if method else {}
        key = fingerprint([seed, dict(changes)])
        if self._components is None or self._components[0] != key:
            config = copy.deepcopy(self.config)
            config.randomness = dict(seed=seed)
            for hook in config.custom_hooks:
                hook.pop('seed', None)  # it would be the same for all seeds of the benchmark
                if is_gap_hook(hook):
                    hook['generator'].update(copy.deepcopy(dict(changes)))
            self._components = (key, Components(config))
        return self._components[1]

    def release(self) -> None:
        """Let go of generator and sources, which take most of the memory, until they are needed."""
        self._components = None

    def _check(self, path: Path, key: str, method: str) -> None:
        if key != self.key(method):
            raise ValueError(
                f'{path} was made with other settings of {method!r}; choose another --out, or '
                'delete it'
            )

    def evaluation(self) -> list[Any]:
        """The datasets that cells are evaluated on."""
        test = self.config.test_dataloader.dataset
        changes = [{}, *(self.settings.get('evaluate') or {}).values()]
        return [DATASETS.build({**copy.deepcopy(test), **change}) for change in changes]

    def train_config(self, seed: int) -> Config:
        """The config without hook, validation and checkpoints, on one seed."""
        config = copy.deepcopy(self.config)
        config.pop('benchmark')
        config.randomness = dict(seed=seed)
        config.custom_hooks = []
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
        config.default_hooks.checkpoint = None
        config.log_level = 'WARNING'
        return config

    @staticmethod
    def run(
        config: Config,
        keep: Path | None = None,
        evaluate: Mapping[str, Any] | None = None,
        test: bool = True,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train and test.

        Args:
            config: What to train.
            keep: Where to keep the final weights.
            evaluate: By name, changes to the test data's settings for further evaluations.
            test: False leaves the test report empty.

        Returns:
            The test report, and those of ``evaluate`` without their raw metrics.
        """
        with tempfile.TemporaryDirectory() as work_dir:
            config.work_dir = work_dir
            config.experiment_name = f'benchmark_{time.time_ns()}'
            runner = Runner.from_cfg(config)
            runner.train()
            report = measured(runner.test_loop.run()) if test else {}
            others = {}
            for name, changes in (evaluate or {}).items():
                loader = ConfigDict(copy.deepcopy(config.test_dataloader))
                loader.dataset.update(changes)
                others[name] = measured(TestLoop(runner, loader, config.test_evaluator).run())
                others[name].pop('metrics')
            if keep is not None:
                keep.parent.mkdir(parents=True, exist_ok=True)
                runner.save_checkpoint(work_dir, 'base.pth', save_optimizer=False)
                shutil.copy(Path(work_dir, 'base.pth'), keep.with_suffix('.tmp'))
                keep.with_suffix('.tmp').replace(keep)
        return report, others
