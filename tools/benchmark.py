#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare methods of making training images at equal image budgets over seeds.

A cell is (method, budget, seed, layers): from one base checkpoint per seed, shared by all methods,
the same number of optimiser steps with half of each batch generated, then the test metrics.
Finished cells are kept under OUT/cells and never run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_report import write_report
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from mmgap.compat import allow_checkpoint_history
from mmgap.files import fingerprint, weights_fingerprint, write_json
from mmgap.generators import SourceSet
from mmgap.hooks.components import Components
from mmgap.hooks.summary import environment, group_report
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.synthesis import SamplePool

METHODS = {
    'none': 'training goes on with real images alone',
    'agnostic': 'neutral sentences',
    'random': 'draws from the Gaussian of the vocabulary, the starting points of ap',
    'prompts': 'the sentences of a file',
    'ap': 'adversarial prompts, drawn with sources of all classes',
    'ap-own': 'the same prompts, each drawn with its own class only',
    'real': 'real images of the target distribution: the upper bound',
}
LAYERS = ('last', 'all')


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
        config: A config with a GAPHook and a ``benchmark`` section.
        out: Where results go.
        budgets: Image budgets, ascending.
    """

    def __init__(self, config: Config, out: Path, budgets: list[int]) -> None:
        self.config = config
        self.settings = config.benchmark
        self.out = out
        self.budgets = budgets
        self._components: tuple[int, Components] | None = None

    def cell(self, method: str, budget: int, seed: int, layers: str) -> dict[str, Any]:
        """Run one cell, or read it if it has been run."""
        path = self.out / 'cells' / f'{method}-{budget}-{seed}-{layers}.json'
        if path.exists():
            return json.loads(path.read_text())
        base = self.base(seed)
        pool = None if method == 'none' else self.pool(method, seed)
        began = time.time()
        config = self.train_config(seed)
        wrapped = config.train_dataloader.dataset
        if pool is not None:
            config.train_dataloader.dataset = dict(
                type='mmgap.SyntheticMixDataset', dataset=wrapped, pool=str(pool), budget=budget
            )
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        config.train_cfg = dict(by_epoch=False, max_iters=self.settings.steps)
        config.optim_wrapper = dict(optimizer=dict(self.settings.optimizers[layers]))
        # Without decay the last steps' noise decides the worst group.
        decay = dict(type='CosineAnnealingLR', by_epoch=False, T_max=self.settings.steps)
        config.param_scheduler = decay
        config.load_from = str(base)
        config.custom_hooks = [dict(type='LastLayerOnly')] if layers == 'last' else []
        report = self.run(config)
        cell = dict(method=method, budget=budget, seed=seed, layers=layers)
        for name in ('worst_group', 'mean', 'adjusted', 'groups'):
            cell[name] = report[name]
        cell.update(images=budget, dropped=0, seconds=time.time() - began)
        write_json(path, cell)
        return cell

    def base(self, seed: int) -> Path:
        """The checkpoint that all methods of a seed start from: the config without its hook."""
        path = self.out / 'base' / f'seed_{seed}.pth'
        if not path.exists():
            config = self.train_config(seed)
            hook = next(h for h in self.config.custom_hooks if h['type'] == 'mmgap.GAPHook')
            config.train_cfg = dict(by_epoch=True, max_epochs=hook.get('start', 1))
            report = self.run(config, keep=path)
            write_json(path.with_suffix('.json'), report)
        return path

    def pool(self, method: str, seed: int) -> Path:
        """The images of a method and seed; the pool of the largest budget serves all."""
        folder = self.out / 'pools' / f'{method}-{seed}'
        about = folder / 'about.json'
        if about.exists():
            return folder
        began = time.time()
        facts = self.real(folder) if method == 'real' else self.generate(method, seed, folder)
        write_json(about, dict(facts, method=method, seed=seed, seconds=time.time() - began))
        return folder

    def real(self, folder: Path) -> dict[str, Any]:
        """Put real images of the target distribution into a pool, in their own order."""
        dataset = DATASETS.build(dict(self.settings.real))
        size = self.parts(0).generator.size
        sources, pool = SourceSet(dataset, size), SamplePool(folder)
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

    def generate(self, method: str, seed: int, folder: Path) -> dict[str, Any]:
        """Draw a method's images and judge its prompts on held-out sources."""
        parts = self.parts(seed)
        target = parts.target(str(self.base(seed)))
        began = time.time()
        prompts, search = self.prompts(method, seed, parts, target)
        searched = time.time() - began
        synthesizer = parts.synthesizer()
        synthesizer.cross = method != 'ap-own'
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

    def prompts(
        self, method: str, seed: int, parts: Components, target: Any
    ) -> tuple[list[SoftPrompt], Any]:
        """A method's prompts, as many for each, and the search that judges them."""
        search, initial = parts.search(target)
        if method in ('ap', 'ap-own'):
            bank = PromptBank(self.out / 'prompts' / f'seed_{seed}')
            if len(bank) < len(initial):
                checkpoint = self.out / 'search' / f'seed_{seed}.safetensors'
                search.run(initial, checkpoint=checkpoint, bank=bank)
            found = {prompt.id: prompt for prompt in bank}
            return [found[prompt.id] for prompt in initial], search
        if method == 'random':
            return initial, search
        texts = self.settings.agnostic
        if method == 'prompts':
            lines = Path(self.settings.prompts).read_text().splitlines()
            texts = [line.strip() for line in lines if line.strip() and line[0] != '#']
        encoder = parts.generator.prompts
        named = [
            encoder.text_prompt(texts[i % len(texts)], f'{method}-{i}') for i in range(len(initial))
        ]
        return named, search

    def parts(self, seed: int) -> Components:
        """Generator, sources and settings of a seed."""
        if self._components is None or self._components[0] != seed:
            config = copy.deepcopy(self.config)
            config.randomness = dict(seed=seed)
            self._components = (seed, Components(config))
        return self._components[1]

    def train_config(self, seed: int) -> Config:
        """The config without hook, validation and checkpoints, on one seed."""
        config = copy.deepcopy(self.config)
        config.randomness = dict(seed=seed)
        config.custom_hooks = []
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
        config.default_hooks.checkpoint = None
        config.log_level = 'WARNING'
        return config

    def run(self, config: Config, keep: Path | None = None) -> dict[str, Any]:
        """Train and test; keep the final weights if asked."""
        with tempfile.TemporaryDirectory() as work_dir:
            config.work_dir = work_dir
            config.experiment_name = f'benchmark_{time.time_ns()}'
            runner = Runner.from_cfg(config)
            runner.train()
            report = group_report(runner.test_loop.run())
            if keep is not None:
                keep.parent.mkdir(parents=True, exist_ok=True)
                runner.save_checkpoint(work_dir, 'base.pth', save_optimizer=False)
                shutil.copy(Path(work_dir, 'base.pth'), keep.with_suffix('.tmp'))
                keep.with_suffix('.tmp').replace(keep)
        return report


def parse_args() -> argparse.Namespace:
    known = '\n'.join(f'  {name:<10}{text}' for name, text in METHODS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f'methods:\n{known}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config with a GAPHook and a benchmark section')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), metavar='NAME')
    parser.add_argument('--budgets', nargs='+', type=int, default=[100, 400])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--layers', nargs='+', default=list(LAYERS), choices=LAYERS)
    parser.add_argument('--out', required=True, type=Path, help='folder of the results')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value …')
    args = parser.parse_args()
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f'unknown methods {unknown}; there are:\n{known}')
    for name in ('methods', 'budgets', 'seeds', 'layers'):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            parser.error(f'--{name} names something twice: {values}')
    return args


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and check that the benchmark can be run with it."""
    if not Path(args.config).is_file():
        raise SystemExit(f'config {args.config!r} does not exist')
    config = Config.fromfile(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    if 'benchmark' not in config:
        raise SystemExit(f'{args.config} has no `benchmark` section')
    hooks = [h for h in config.get('custom_hooks') or [] if h['type'] == 'mmgap.GAPHook']
    if len(hooks) != 1:
        raise SystemExit(f'{args.config} must have one mmgap.GAPHook, it has {len(hooks)}')
    search = hooks[0].get('search') or {}
    prompts = search.get('prompts_per_class', 4) * config.model.head.num_classes
    if min(args.budgets) < prompts:
        raise SystemExit(
            f'budget {min(args.budgets)} is below the number of prompts ({prompts}): some would '
            'not be drawn at all'
        )
    return config


def main() -> None:
    """Run all cells, then write results.json, results.md, curves.png and meta.json."""
    args = parse_args()
    config = load_config(args)
    hook = next(h for h in config.custom_hooks if h['type'] == 'mmgap.GAPHook')
    meta = dict(
        command=' '.join(['python', 'tools/benchmark.py', *sys.argv[1:]]),
        config=fingerprint(config.to_dict()),
    )
    shared = args.out / 'meta.json'
    if shared.exists() and (args.out / 'cells').exists():
        before = json.loads(shared.read_text())
        if before['config'] != meta['config'] or max(before['budgets']) < max(args.budgets):
            raise SystemExit(
                f'{args.out} holds results of another config or of smaller budgets; choose '
                'another --out'
            )
    allow_checkpoint_history()
    benchmark = Benchmark(config, args.out, sorted(args.budgets))
    meta['budgets'] = sorted(args.budgets)
    parts = benchmark.parts(args.seeds[0])
    generator = parts.generator
    meta['versions'] = environment(parts.sources.dataset.metainfo)
    meta['generator'] = generator.fingerprint()
    meta['unet'] = weights_fingerprint(generator.pipeline.unet)
    meta['hook'] = fingerprint(dict(hook))
    write_json(shared, meta)
    jobs = [
        (method, budget, seed, layers)
        for seed in args.seeds
        for method in args.methods
        for budget in ([0] if method == 'none' else sorted(args.budgets))
        for layers in args.layers
    ]
    cells, began, fresh = [], time.time(), 0
    for number, job in enumerate(jobs, start=1):
        started = time.time()
        cells.append(benchmark.cell(*job))
        fresh += time.time() - started > 0.5
        left = (len(jobs) - number) * (time.time() - began) / max(1, fresh)
        method, budget, seed, layers = job
        print(
            f'[{number}/{len(jobs)}] {method} {budget} images, seed {seed}, {layers}: worst group '
            f'{cells[-1]["worst_group"]:.3f}, mean {cells[-1]["mean"]:.3f}; '
            f'{left / 60:.0f} min left',
            flush=True,
        )
        if number == len(jobs) or job[2] != jobs[number][2]:  # a seed is complete
            write_report(args.out, cells, METHODS, meta)
    print(f'results in {args.out}')


if __name__ == '__main__':
    main()
