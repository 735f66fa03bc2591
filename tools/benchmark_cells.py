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

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, TASK_UTILS
from mmengine.runner import Runner, TestLoop

from mmgap.feedback import Critic, read_sentences
from mmgap.files import fingerprint, write_json
from mmgap.generators import SourceSet
from mmgap.hooks.components import (
    Components,
    build_critic,
    build_search,
    build_synthesizer,
    split_search,
)
from mmgap.hooks.summary import group_report
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.synthesis import SamplePool

# What a method's fragment may say.
KEYS = (
    'about',  # what it is, for the tables
    'search',  # changes to the hook's search: prompts are searched for
    'feedback',  # terms instead of the hook's
    'prompts_of',  # take the prompts that another method has found
    'initial',  # changes to the hook's search: its starting points are drawn, unsearched
    'texts',  # sentences, a list or a file; beside found prompts they fill up the number
    'synthesis',  # changes to the hook's synthesis
    'critic',  # a critic instead of the hook's
    'dataset',  # real images instead of generated ones
    'train',  # changes to the training config, for methods that make no images
)
# What a cell sets itself; a method that changed it would not be compared on equal terms.
FIXED = ('train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks', 'load_from', 'randomness')


@HOOKS.register_module()
class LastLayerOnly(Hook):
    """Train the head alone: the rest stays in eval mode without gradient."""

    def before_train(self, runner: Runner) -> None:
        """Freeze everything but the head."""
        for name, parameter in runner.model.named_parameters():
            parameter.requires_grad_(name.startswith('head.'))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep normalisation statistics as they are."""
        for name, child in runner.model.named_children():
            if name not in ('head', 'data_preprocessor'):
                child.eval()


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
        self.config = config
        self.settings = config.benchmark
        self.methods: Mapping[str, Any] = self.settings.methods
        for name in self.methods:
            self._check_fragment(name)
        self.out = out
        self.budgets = sorted(budgets)
        self._components: tuple[int, Components] | None = None
        shared = copy.deepcopy(config.to_dict())
        shared['benchmark'].pop('methods')
        parts = self.parts(0)
        world = parts.sources.dataset.metainfo.get('world_version')
        self._shared = fingerprint([shared, parts.generator.fingerprint(), world])
        known = out / 'base' / 'key.json'
        if known.exists() and json.loads(known.read_text()) != self._shared:
            raise ValueError(
                f'{out} holds results of another config, generator or world; choose another --out'
            )
        write_json(known, self._shared)

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
            fragment['texts'] = self._texts(method)
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
        parent = fragment.get('prompts_of')
        if parent is not None and not {'search', 'initial'} & set(self.methods.get(parent, ())):
            raise ValueError(f'method {name!r} takes the prompts of {parent!r}, which finds none')

    def _texts(self, method: str) -> list[str]:
        texts = self.methods[method].get('texts', ())
        return read_sentences(texts) if isinstance(texts, str) else list(texts)

    def cell(self, method: str, budget: int, seed: int, layers: str) -> dict[str, Any]:
        """Run one cell, or read it if it has been run.

        Raises:
            ValueError: If the cell has been run with other settings.
        """
        path = self.out / 'cells' / f'{method}-{budget}-{seed}-{layers}.json'
        if path.exists():
            cell = json.loads(path.read_text())
            self._check(path, cell.pop('key'), method)
            return cell
        base = self.base(seed)
        pool = self.pool(method, seed) if self.makes_images(method) else None
        began = time.time()
        config = self.train_config(seed)
        config.merge_from_dict(copy.deepcopy(dict(self.methods[method].get('train', {}))))
        images, dropped = budget, 0
        if pool is not None:
            images, dropped = self._counts(pool, budget)
            config.train_dataloader.dataset = dict(
                type='mmgap.SyntheticMixDataset',
                dataset=config.train_dataloader.dataset,
                pool=str(pool),
                budget=images,
            )
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        config.train_cfg = dict(by_epoch=False, max_iters=self.settings.steps)
        config.optim_wrapper = dict(optimizer=dict(self.settings.optimizers[layers]))
        # Without decay the last steps' noise decides the worst group.
        decay = dict(type='CosineAnnealingLR', by_epoch=False, T_max=self.settings.steps)
        config.param_scheduler = decay
        config.load_from = str(base)
        config.custom_hooks = [dict(type='LastLayerOnly')] if layers == 'last' else []
        report, others = self.run(config, evaluate=self.settings.get('evaluate') or {})
        cell = dict(method=method, budget=budget, seed=seed, layers=layers)
        for name in ('worst_group', 'mean', 'adjusted', 'groups'):
            cell[name] = report[name]
        cell.update(images=images, dropped=dropped, seconds=time.time() - began)
        cell['val_worst_group'] = others['val']['worst_group'] if 'val' in others else None
        cell['others'] = others
        write_json(path, dict(cell, key=self.key(method)))
        return cell

    @staticmethod
    def _counts(pool: Path, budget: int) -> tuple[int, int]:
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
            hook = next(h for h in self.config.custom_hooks if h['type'] == 'mmgap.GAPHook')
            config.train_cfg = dict(by_epoch=True, max_epochs=hook.get('start', 1))
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
        facts = (
            self._real(method, folder)
            if 'dataset' in self.methods[method]
            else self._generate(method, seed, folder)
        )
        facts.update(method=method, seed=seed, images=max(self.budgets), key=self.key(method))
        write_json(about, dict(facts, seconds=time.time() - began))
        return folder

    def folder(self, kind: str, method: str, seed: int) -> Path:
        """Where something of a method and seed is kept; other settings have another folder."""
        return self.out / kind / f'{method}-{seed}-{self.key(method)[:8]}'

    def parts(self, seed: int) -> Components:
        """Generator, sources and settings of a seed."""
        if self._components is None or self._components[0] != seed:
            config = copy.deepcopy(self.config)
            config.randomness = dict(seed=seed)
            for hook in config.custom_hooks:
                hook.pop('seed', None)  # it would be the same for all seeds of the benchmark
            self._components = (seed, Components(config))
        return self._components[1]

    def _check(self, path: Path, key: str, method: str) -> None:
        if key != self.key(method):
            raise ValueError(
                f'{path} was made with other settings of {method!r}; choose another --out, or '
                'delete it'
            )

    def _real(self, method: str, folder: Path) -> dict[str, Any]:
        """Put real images into a pool, in their own order."""
        dataset = DATASETS.build(dict(self.methods[method].dataset))
        self._check_leak(method, dataset)
        sources, pool = SourceSet(dataset, self.parts(0).generator.size), SamplePool(folder)
        if len(sources) < max(self.budgets):
            raise ValueError(
                f'the dataset of {method!r} has {len(sources)} images, {max(self.budgets)} are '
                'asked for'
            )
        for index in range(len(pool), max(self.budgets)):
            condition = sources.load([index])
            pool.append(
                condition.images[0].permute(1, 2, 0).numpy(),
                label=int(condition.labels[0]),
                group=sources.groups[index],
                source_index=index,
                source_group=sources.groups[index],
                seed=0,
                prompt_id='real',
                generator='real',
                num_inference_steps=0,
                target_loss_source=None,
                target_loss_image=None,
                feedback=None,
                round=0,
            )
        return {}

    def _check_leak(self, method: str, dataset: Any) -> None:
        own = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
        for other in self.evaluation():
            for i in range(len(other)):
                if other.get_data_info(i)['img_path'] in own:
                    raise ValueError(
                        f'method {method!r} would train on images that the benchmark evaluates on, '
                        f'among them {other.get_data_info(i)["img_path"]}'
                    )

    def evaluation(self) -> list[Any]:
        """The datasets that cells are evaluated on."""
        test = self.config.test_dataloader.dataset
        changes = [{}, *(self.settings.get('evaluate') or {}).values()]
        return [DATASETS.build({**copy.deepcopy(test), **change}) for change in changes]

    def _generate(self, method: str, seed: int, folder: Path) -> dict[str, Any]:
        """Draw a method's images and judge its prompts on held-out sources."""
        parts, fragment = self.parts(seed), self.methods[method]
        target = parts.target(str(self.base(seed)))
        began = time.time()
        prompts, search = self._prompts(method, seed, parts, target)
        searched = time.time() - began
        settings = dict(parts.hook.synthesis_cfg, **fragment.get('synthesis', {}))
        critic = self._critic(method, parts)
        fixed = (parts.generator, parts.sources, settings, seed)
        synthesizer = build_synthesizer(*fixed, critic=critic)
        pool = SamplePool(folder)
        # Whole batches: then the pool of a small budget is the beginning of a larger one's.
        batches = -(-max(self.budgets) // synthesizer.batch_size)
        synthesizer.run(prompts, batches * synthesizer.batch_size, pool, target, parts.feedback)
        judged = [search.judge(prompt) for prompt in prompts]
        return dict(
            prompts=[prompt.id for prompt in prompts],
            judged=judged,
            held_out={name: float(np.mean([j[name] for j in judged])) for name in judged[0]},
            pool_target_loss=float(np.mean([s.target_loss_image for s in pool.samples])),
            search_seconds=searched,
        )

    def _prompts(
        self, method: str, seed: int, parts: Components, target: Any
    ) -> tuple[list[SoftPrompt], Any]:
        """A method's prompts, as many for each method, and a search that judges them."""
        fragment = self.methods[method]
        if 'prompts_of' in fragment:
            return self._prompts(fragment['prompts_of'], seed, parts, target)
        settings = {**parts.hook.initial_cfg, **parts.hook.search_cfg}
        critic = self._critic(method, parts)
        search, initial = self._search(parts, target, settings, parts.feedback, critic)
        number, found = len(initial), []
        changes = dict(fragment.get('search', fragment.get('initial', {})))
        if 'initial' in fragment:
            settings.update(changes)
            found = self._search(parts, target, settings, parts.feedback, critic)[1]
        if 'search' in fragment:
            feedback = parts.feedback
            if 'feedback' in fragment:
                feedback = [TASK_UTILS.build(dict(term)) for term in fragment.feedback]
                parts.prepare(feedback, self.out / 'features', self.evaluation())
            settings.update(changes)
            own, found = self._search(parts, target, settings, feedback, critic)
            bank = PromptBank(self.folder('prompts', method, seed))
            # Goes on from its checkpoint, which knows whether it is still the same search.
            own.run(found, self.folder('search', method, seed).with_suffix('.safetensors'), bank)
        texts = self._texts(method)
        encoder = parts.generator.prompts
        named = [
            encoder.text_prompt(texts[i % len(texts)], f'{method}-{i}')
            for i in range(number - len(found) if texts else 0)
        ]
        prompts = [*found, *named]
        if len(prompts) != number:
            raise ValueError(
                f'method {method!r} has {len(prompts)} prompts, the hook {number}; all methods '
                'must have as many'
            )
        return prompts, search

    def _critic(self, method: str, parts: Components) -> Critic | None:
        settings = self.methods[method].get('critic', parts.hook.critic_cfg)
        return build_critic(settings, parts.sources.classes)

    @staticmethod
    def _search(
        parts: Components,
        target: Any,
        settings: Mapping[str, Any],
        feedback: Sequence[Any],
        critic: Critic | None,
    ) -> tuple[Any, list[SoftPrompt]]:
        fixed = (parts.generator, target, feedback, parts.sources)
        return build_search(*fixed, *split_search(settings), parts.seed, critic=critic)

    def train_config(self, seed: int) -> Config:
        """The config without hook, validation and checkpoints, on one seed."""
        config = copy.deepcopy(self.config)
        config.randomness = dict(seed=seed)
        config.custom_hooks = []
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
        config.default_hooks.checkpoint = None
        config.log_level = 'WARNING'
        return config

    @staticmethod
    def run(
        config: Config, keep: Path | None = None, evaluate: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train and test.

        Args:
            config: What to train.
            keep: Where to keep the final weights.
            evaluate: By name, changes to the test data's settings for further evaluations.

        Returns:
            The test report, and those of ``evaluate`` without their raw metrics.
        """
        with tempfile.TemporaryDirectory() as work_dir:
            config.work_dir = work_dir
            config.experiment_name = f'benchmark_{time.time_ns()}'
            runner = Runner.from_cfg(config)
            runner.train()
            report = group_report(runner.test_loop.run())
            others = {}
            for name, changes in (evaluate or {}).items():
                loader = ConfigDict(copy.deepcopy(config.test_dataloader))
                loader.dataset.update(changes)
                others[name] = group_report(TestLoop(runner, loader, config.test_evaluator).run())
                others[name].pop('metrics')
            if keep is not None:
                keep.parent.mkdir(parents=True, exist_ok=True)
                runner.save_checkpoint(work_dir, 'base.pth', save_optimizer=False)
                shutil.copy(Path(work_dir, 'base.pth'), keep.with_suffix('.tmp'))
                keep.with_suffix('.tmp').replace(keep)
        return report, others
