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

from mmgap.feedback import Critic
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

IMAGES = {'search', 'prompts_of', 'initial', 'texts', 'dataset'}
# What a method's fragment may say; see README.
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
        ValueError: If a method's fragment says something unknown.
    """

    def __init__(self, config: Config, out: Path, budgets: Sequence[int]) -> None:
        self.config = config
        self.settings = config.benchmark
        self.methods: Mapping[str, Any] = self.settings.methods
        for name, fragment in self.methods.items():
            unknown = sorted(set(fragment) - set(KEYS))
            if unknown:
                raise ValueError(f'method {name!r} has unknown keys {unknown}; there are {KEYS}')
        self.out = out
        self.budgets = sorted(budgets)
        self._components: tuple[int, Components] | None = None
        shared = copy.deepcopy(config.to_dict())
        shared['benchmark'].pop('methods')
        self._shared = fingerprint(shared)

    def makes_images(self, method: str) -> bool:
        """Whether budgets mean anything to a method."""
        return bool(
            {'search', 'prompts_of', 'initial', 'texts', 'dataset'} & set(self.methods[method])
        )

    def key(self, method: str) -> str:
        """Names the config and the method's fragment: cells with another key are another cell."""
        fragment = dict(self.methods[method])
        fragment.pop('about', None)
        parent = fragment.get('prompts_of')
        return fingerprint([self._shared, fragment, self.key(parent) if parent else None])

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
        dropped = 0
        if pool is not None:
            dropped = self._dropped(pool, budget)
            config.train_dataloader.dataset = dict(
                type='mmgap.SyntheticMixDataset',
                dataset=config.train_dataloader.dataset,
                pool=str(pool),
                budget=budget,
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
        cell.update(images=budget, dropped=dropped, seconds=time.time() - began)
        cell['val_worst_group'] = others['val']['worst_group'] if 'val' in others else None
        cell['others'] = others
        write_json(path, dict(cell, key=self.key(method)))
        return cell

    @staticmethod
    def _dropped(pool: Path, budget: int) -> int:
        """How many images a critic dropped until the budget was full."""
        kept = dropped = 0
        for sample in SamplePool(pool).samples:
            kept += sample.kept
            dropped += not sample.kept
            if kept == budget:
                break
        return dropped

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
        folder = self.out / 'pools' / f'{method}-{seed}'
        about = folder / 'about.json'
        if about.exists():
            facts = json.loads(about.read_text())
            self._check(about, facts['key'], method)
            if facts['images'] >= max(self.budgets):
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

    def parts(self, seed: int) -> Components:
        """Generator, sources and settings of a seed."""
        if self._components is None or self._components[0] != seed:
            config = copy.deepcopy(self.config)
            config.randomness = dict(seed=seed)
            self._components = (seed, Components(config))
        return self._components[1]

    def _check(self, path: Path, key: str, method: str) -> None:
        if key != self.key(method):
            raise ValueError(
                f'{path} was made with other settings of {method!r} or of the config; choose '
                'another --out, or delete it'
            )

    def _real(self, method: str, folder: Path) -> dict[str, Any]:
        """Put real images into a pool, in their own order."""
        dataset = DATASETS.build(dict(self.methods[method].dataset))
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
        synthesizer.run(prompts, max(self.budgets), pool, target, parts.feedback)
        with target.frozen():
            judged = [search.evaluate(prompt) for prompt in prompts]
        losses, accuracies = zip(*judged, strict=True)
        return dict(
            prompts=[prompt.id for prompt in prompts],
            held_out_target_loss=float(np.mean(losses)),
            held_out_target_loss_by_prompt=list(losses),
            held_out_accuracy=float(np.mean(accuracies)),
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
                parts.prepare(feedback, self.out / 'features')
            settings.update(changes)
            own, found = self._search(parts, target, settings, feedback, critic)
            bank = PromptBank(self.out / 'prompts' / f'{method}-{seed}')
            if len(bank) < len(found):
                checkpoint = self.out / 'search' / f'{method}-{seed}.safetensors'
                own.run(found, checkpoint=checkpoint, bank=bank)
            kept = {prompt.id: prompt for prompt in bank}
            found = [kept[prompt.id] for prompt in found]
        texts = _sentences(fragment.get('texts', ()))
        encoder = parts.generator.prompts
        named = [
            encoder.text_prompt(texts[i % len(texts)], f'{method}-{i}')
            for i in range(number - len(found) if texts else 0)
        ]
        return [*found, *named], search

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


def _sentences(texts: str | Sequence[str]) -> list[str]:
    """A list of sentences, or the lines of a file that are no comments."""
    lines = Path(texts).read_text().splitlines() if isinstance(texts, str) else texts
    return [line.strip() for line in lines if line.strip() and line.strip()[0] != '#']
