# SPDX-License-Identifier: Apache-2.0
"""Compare targets: what each gains, and what the images that one fails on do to the others.

A target is a name of the config's ``zoo``, which says what it changes there, or of MMPretrain's
model list: then its model takes the place of the config's, with its published weights and the
config's number of classes; pipelines and optimisers stay the config's. Each is searched and
evaluated as by ``mmgap benchmark``, under OUT/MODEL. Then every target meets the images of every
other one, as it is and trained on them.
Writes results.json, results.md, metafile.yml and meta.json after each finished cell; what is
finished is not run again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from mmgap.benchmark.cells import Benchmark
from mmgap.benchmark.jobs import run_jobs, wait_for
from mmgap.benchmark.models import check_weights, with_model
from mmgap.benchmark.pools import counts_of
from mmgap.benchmark.run import Cells, check_config, finish_arguments, prepare_config, run_cells
from mmgap.benchmark.training import train_and_test
from mmgap.benchmark.zoo_report import write_report
from mmgap.compat import allow_checkpoint_history
from mmgap.configs import name_of
from mmgap.files import fingerprint, read_json, write_json
from mmgap.loop import environment
from mmgap.pool import SamplePool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config with a GAPHook and a benchmark section, or the name of a shipped one',
    )
    parser.add_argument(
        '--models', nargs='+', metavar='NAME', help="all of the config's zoo by default"
    )
    parser.add_argument('--methods', nargs='+', default=['none', 'gap'], metavar='NAME')
    parser.add_argument(
        '--transfer', default='gap', metavar='NAME', help='method whose images go to other targets'
    )
    parser.add_argument('--budget', type=int, default=100, help='images')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--layers', default='all', choices=['last', 'all'])
    parser.add_argument('--out', required=True, type=Path, help='folder of the results')
    return finish_arguments(parser, ('models', 'methods', 'seeds'))


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and check that it has what the arguments name."""
    config = prepare_config(args)
    if args.transfer not in args.methods:
        args.methods.append(args.transfer)
    check_config(args.config, config, args.methods, [args.budget])
    if 'num_classes' not in (config.model.get('head') or {}):
        raise SystemExit(f'{args.config} has no classifier: its model has no head.num_classes')
    args.models = args.models or list(config.get('zoo') or ())
    if not args.models:
        raise SystemExit(f'{args.config} has no `zoo`; name models of MMPretrain with --models')
    return config


class Zoo:
    """The benchmarks of all targets, and what passes between them.

    Args:
        config: The config.
        args: What to compare.
    """

    def __init__(self, config: Config, args: argparse.Namespace) -> None:
        self.args = args
        self.benchmarks = {}
        for name in args.models:
            changed = with_model(config, name)
            check_weights(name, changed)
            benchmark = Benchmark(changed, args.out / name, [args.budget])
            benchmark.release()
            self.benchmarks[name] = benchmark
        first = self.benchmarks[args.models[0]]
        if not first.methods[args.transfer].makes_images:
            raise ValueError(f'--transfer {args.transfer!r} makes no images')

    def cells(self, seeds: Sequence[int]) -> Cells:
        """All cells of some seeds: of each target, then of the transfer matrix."""
        models, cells = self.args.models, {}
        for seed in seeds:
            for model in models:
                for method in self.args.methods:
                    path = self.benchmarks[model].path(**self.setting(model, method, seed))
                    cells[path] = partial(self.cell, model, method, seed)
            for images_of in models:
                for model in models:
                    path = self.transfer_path(images_of, model, seed)
                    cells[path] = partial(self.transfer, images_of, model, seed)
        return cells

    def setting(self, model: str, method: str, seed: int) -> dict[str, Any]:
        """Name a cell of one target; the budget is 0 for methods that make no images."""
        makes_images = self.benchmarks[model].methods[method].makes_images
        budget = self.args.budget if makes_images else 0
        return dict(method=method, budget=budget, seed=seed, layers=self.args.layers)

    def cell(self, model: str, method: str, seed: int) -> dict[str, Any]:
        """A cell of one target."""
        benchmark, setting = self.benchmarks[model], self.setting(model, method, seed)
        if not benchmark.path(**setting).exists():
            self._make_room(model)
        return dict(benchmark.cell(**setting), model=model)

    def transfer_path(self, images_of: str, model: str, seed: int) -> Path:
        """Where a cell of the transfer matrix is kept."""
        args = self.args
        name = f'{args.transfer}-{args.budget}-{seed}-{args.layers}.json'
        return args.out / 'transfer' / images_of / model / name

    def transfer(self, images_of: str, model: str, seed: int) -> dict[str, Any]:
        """A target on another one's images: its loss as it is, its report when trained on them.

        Raises:
            ValueError: If the cell was made with other settings.
        """
        args, row, column = self.args, self.benchmarks[images_of], self.benchmarks[model]
        path = self.transfer_path(images_of, model, seed)
        key = fingerprint([row.key(args.transfer), column.cell_key(args.transfer)])
        if path.exists():
            cell = read_json(path)
            if cell.pop('key') != key:
                raise ValueError(f'{path} was made with other settings; choose another --out')
            return cell
        self._make_room(model)
        began = time.monotonic()
        folder = row.pool(args.transfer, seed)
        loss, accuracy = evaluate_on_pool(column, seed, folder, args.budget)
        if images_of == model:
            report = column.cell(args.transfer, args.budget, seed, args.layers)
        else:
            images, _ = counts_of(folder, args.budget)
            config = column.training(args.transfer, seed, args.layers, folder, images)
            report, _ = train_and_test(config)
        cell = dict(images_of=images_of, model=model, seed=seed, loss=loss, accuracy=accuracy)
        cell.update({name: report[name] for name in ('worst_group', 'mean', 'groups', 'measure')})
        cell.update(seconds=time.monotonic() - began)
        write_json(path, dict(cell, key=key))
        return cell

    def _make_room(self, model: str) -> None:
        """Let go of generator and sources of all targets but one."""
        for other in set(self.benchmarks) - {model}:
            self.benchmarks[other].release()

    def parameters(self, model: str) -> int:
        """Number of a target's parameters."""
        target = MODELS.build(copy.deepcopy(self.benchmarks[model].config.model))
        return sum(parameter.numel() for parameter in target.parameters())


def evaluate_on_pool(
    benchmark: Benchmark, seed: int, folder: Path, count: int
) -> tuple[float, float]:
    """Mean loss and accuracy of a target's base checkpoint on the first kept images of a pool."""
    pool = SamplePool(folder)
    samples = pool.kept[:count]
    target = benchmark.loop(seed).target(str(benchmark.base(seed)))
    losses: list[float] = []
    hits: list[bool] = []
    with target.frozen(), torch.no_grad():
        for start in range(0, len(samples), 50):
            part = samples[start : start + 50]
            images = np.stack([np.array(Image.open(pool.path(sample))) for sample in part])
            labels = torch.tensor([sample.label for sample in part])
            output = target(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, labels)
            losses += output.loss.tolist()
            hits += output.hits(labels).tolist()
    return float(np.mean(losses)), float(np.mean(hits))


def line(cell: Mapping[str, Any]) -> str:
    """What to print of a cell."""
    worst = f'{cell["worst_group"]:.3f}'
    if 'images_of' not in cell:
        return f'seed {cell["seed"]}, {cell["model"]}, {cell["method"]}: worst group {worst}'
    return (
        f'seed {cell["seed"]}, {cell["model"]} on images of {cell["images_of"]}: loss '
        f'{cell["loss"]:.2f}, worst group when trained on them {worst}'
    )


def describe(zoo: Zoo) -> dict[str, Any]:
    """What the results belong to."""
    args, first = zoo.args, zoo.benchmarks[zoo.args.models[0]]
    return dict(
        command=' '.join(['mmgap zoo', *sys.argv[1:]]),
        models={name: zoo.parameters(name) for name in args.models},
        method=args.transfer,
        budget=args.budget,
        layers=args.layers,
        test=first.config.test_dataloader.dataset.get('split', 'test'),
        data=name_of(first.config.test_dataloader.dataset.type),
        config=args.config,
        versions=environment(first.loop(args.seeds[0]).sources.dataset.metainfo),
    )


def work(args: argparse.Namespace, rank: int, world: int) -> None:
    """Run the cells of some of the seeds; the first process also writes the report on all."""
    config = load_config(args)
    allow_checkpoint_history()
    try:
        if rank:
            wait_for(*(args.out / name / 'base' / 'key.json' for name in args.models))
        zoo = Zoo(config, args)
        cells, own = zoo.cells(args.seeds), zoo.cells(args.seeds[rank::world])
        if rank:
            return run_cells(cells, own, line)
        meta = describe(zoo)

        def report(finished: list[dict[str, Any]]) -> None:
            transfers = [cell for cell in finished if 'images_of' in cell]
            gains = [cell for cell in finished if 'images_of' not in cell]
            write_report(args.out, gains, transfers, meta, len(cells))

        run_cells(cells, own, line, report)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(f'results in {args.out}')


def main() -> None:
    """Run all, with the report after each cell."""
    run_jobs(work, parse_args())
