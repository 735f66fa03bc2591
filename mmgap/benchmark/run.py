# SPDX-License-Identifier: Apache-2.0
"""Compare methods of making training images at equal image budgets over seeds.

A cell is (method, budget, seed, layers, injection): from one base checkpoint per seed, shared by
all methods, the same number of optimiser steps with images that enter as the hook's ``injection``
says, then the test metrics. ``--injections`` compares several ways of entering.
Finished cells are kept under OUT/cells and never run again; after each, results.json, results.md
and curves.png are of those that are finished. Methods are fragments in the config's
``benchmark.methods``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgap.benchmark.cells import Benchmark
from mmgap.benchmark.figures import kind_of, on_split
from mmgap.benchmark.jobs import LAUNCHERS, run_jobs, wait_for
from mmgap.benchmark.methods import current_names, read_methods
from mmgap.benchmark.models import check_weights, with_model
from mmgap.benchmark.report import write_report
from mmgap.compat import allow_checkpoint_history, leave_unformatted
from mmgap.configs import Changes, gap_hooks, name_of, read_config
from mmgap.datasets import share_classes
from mmgap.files import fingerprint, weights_fingerprint, write_json
from mmgap.loop import environment
from mmgap.loop.parts import settings_of

LAYERS = ('last', 'all')
GROUP_METRICS = ('GroupAccuracy', 'MacroF1', 'GroupDepth')  # mmgap's, by name or class
# Files of cells, and what runs a cell, or reads it if it has been run.
Cells = Mapping[Path, Callable[[], dict[str, Any]]]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config with a GAPHook and a benchmark section, or the name of a shipped one',
    )
    parser.add_argument(
        '--model',
        metavar='NAME',
        help="target in place of the config's: see `mmgap zoo`",
    )
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='all of the config by default')
    parser.add_argument('--budgets', nargs='+', type=int, default=[100, 400])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--layers', nargs='+', default=list(LAYERS), choices=LAYERS)
    parser.add_argument(
        '--injections',
        nargs='+',
        default=[None],
        metavar='NAME',
        help="how images enter training: names in the config's benchmark.injections; by default "
        'the way of the hook alone',
    )
    parser.add_argument('--out', required=True, type=Path, help='folder of the results')
    parser.add_argument(
        '--report',
        metavar='SPLIT',
        help="report on one of the config's benchmark.evaluate instead of test, under OUT/SPLIT",
    )
    return finish_arguments(parser, ('methods', 'budgets', 'seeds', 'layers', 'injections'))


def finish_arguments(parser: argparse.ArgumentParser, lists: Sequence[str]) -> argparse.Namespace:
    """Add the arguments that both benchmarks have, then parse and check all.

    Args:
        parser: With the tool's own arguments.
        lists: Names of those that must not name something twice.
    """
    parser.add_argument('--cfg-options', nargs='+', action=Changes, help='key=value …')
    parser.add_argument(
        '--launcher',
        choices=['none', *LAUNCHERS],
        default='none',
        help='with several processes, each runs some of the seeds',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        metavar='N',
        help='run the seeds in N processes side by side on one device, which a cell alone may not '
        'fill. Each has models of its own in memory, and its share of the CPU threads: the last '
        'bits of results on a CPU depend on their number',
    )
    args = parser.parse_args()
    for name in lists:
        values = getattr(args, name) or []
        if len(set(values)) < len(values):
            parser.error(f'--{name} names something twice: {values}')
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, not {args.jobs}')
    if args.jobs > 1 and args.launcher != 'none':
        parser.error(
            f'--jobs {args.jobs} starts the processes by itself; leave out --launcher '
            f'{args.launcher}, or --jobs where the launcher starts them'
        )
    return args


def prepare_config(args: argparse.Namespace) -> Config:
    """Read the config, with the changes of ``--cfg-options``, for many short trainings."""
    config = read_config(args.config, args.cfg_options)
    leave_unformatted(config)
    share_classes(config)
    return config


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and check that the benchmark can be run with it."""
    config = prepare_config(args)
    if args.model is not None:
        try:
            config = with_model(config, args.model)
            check_weights(args.model, config)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(str(error)) from error
    args.methods = check_config(args.config, config, args.methods, args.budgets)
    ways = list(config.benchmark.get('injections') or {})
    unknown = [name for name in args.injections if name not in (None, *ways)]
    if unknown:
        raise SystemExit(f'unknown --injections {unknown}; the config has {ways}')
    further = list(config.benchmark.get('evaluate') or {})
    if args.report not in (None, *further):
        raise SystemExit(f'--report {args.report!r} is not evaluated; the config has {further}')
    return config


def check_config(
    path: str, config: Config, chosen: Sequence[str] | None, budgets: Sequence[int]
) -> list[str]:
    """End with what is wrong where a config cannot be compared on.

    Args:
        path: Its file, for messages.
        config: The config.
        chosen: Methods; None for all that it has, but those that need one budget if there are
            several.
        budgets: Numbers of images.

    Returns:
        Names of the methods.
    """
    fragments = (config.get('benchmark') or {}).get('methods')
    if not fragments:
        raise SystemExit(
            f'{path} has no `benchmark` section with `methods`; shipped configs that have one are '
            'benchmark/…, see `mmgap configs`'
        )
    try:
        methods = read_methods(fragments)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    known = '\n'.join(f'  {name:<12}{method.about}' for name, method in methods.items())
    chosen = current_names(chosen or [], methods)
    unknown = [name for name in chosen if name not in methods]
    if unknown:
        raise SystemExit(f'unknown methods {unknown}; {path} has:\n{known}')
    # Of a smaller budget they would have the images of the first round alone.
    single = [name for name, method in methods.items() if len(budgets) > 1 and method.in_rounds]
    if set(single) & set(chosen):
        raise SystemExit(
            f'methods {sorted(set(single) & set(chosen))} have rounds, each with a part of the '
            f'budget: give one of the --budgets {sorted(budgets)} at a time, or leave them out of '
            '--methods'
        )
    if single and not chosen:
        print(f'without {single}, which have rounds and need a run for each budget', flush=True)
        methods = {name: method for name, method in methods.items() if name not in single}
    hooks = gap_hooks(config)
    if len(hooks) != 1:
        raise SystemExit(f'{path} must have one mmgap.GAPHook, it has {len(hooks)}')
    metrics = config.get('test_evaluator') or []
    if isinstance(metrics, Mapping):
        metrics = metrics.get('metrics', [metrics])
    metrics = [name_of(metric['type']) for metric in metrics]
    if not set(metrics) & set(GROUP_METRICS):
        raise SystemExit(
            f'{path} has the test_evaluator {metrics}; the benchmark compares groups and needs one '
            f"of mmgap's {list(GROUP_METRICS)}"
        )
    for name in chosen or methods:
        for folder in methods[name].image_folders():
            if '://' not in folder and not Path(folder).exists():
                raise SystemExit(
                    f'method {name!r} takes images from {folder}, which does not exist; put some '
                    'there, or leave it out of --methods'
                )
    # Depth models have no classes; all their sources are of one.
    classes = (config.model.get('head') or {}).get('num_classes', 1)
    prompts = settings_of(hooks[0]).search.prompts_per_class * classes
    if min(budgets) < prompts:
        raise SystemExit(
            f'budget {min(budgets)} is below the number of prompts ({prompts}): some would '
            'not be drawn at all'
        )
    return list(chosen or methods)


def describe(benchmark: Benchmark, args: argparse.Namespace) -> dict[str, Any]:
    """What the results belong to."""
    loop = benchmark.loop(args.seeds[0])
    return dict(
        test=args.report or benchmark.config.test_dataloader.dataset.get('split', 'test'),
        command=' '.join(['mmgap benchmark', *sys.argv[1:]]),
        config=fingerprint(benchmark.config.to_dict()),
        methods={name: dict(benchmark.methods[name].fragment) for name in args.methods},
        compare=benchmark.compare,
        budgets=benchmark.budgets,
        versions=environment(loop.sources.dataset.metainfo),
        generator=loop.generator.fingerprint(),
        unet=weights_fingerprint(loop.generator.pipeline.unet),
    )


def work(args: argparse.Namespace, rank: int, world: int) -> None:
    """Run the cells of some of the seeds; the first process also writes the report on all."""
    config = load_config(args)
    allow_checkpoint_history()
    folder = args.out / (args.report or '')
    try:
        if rank:
            wait_for(args.out / 'base' / 'key.json')
        benchmark = Benchmark(config, args.out, args.budgets)
        methods = {name: benchmark.methods[name].about for name in args.methods}
        keys = {name: benchmark.key(name) for name in args.methods}
        cells = cells_of(benchmark, args, args.seeds)
        own = cells_of(benchmark, args, args.seeds[rank::world])
        if rank:
            return run_cells(cells, own, line)
        meta = dict(describe(benchmark, args), keys=keys, coverage_of=benchmark.covering)
        write_json(folder / 'meta.json', json.loads(json.dumps(meta, default=str)))

        def report(finished: list[dict[str, Any]]) -> None:
            if args.report:
                finished = [on_split(cell, args.report) for cell in finished]
            write_report(args.out, finished, methods, meta, folder, len(cells))

        run_cells(cells, own, line, report)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(f'results in {folder}')


def cells_of(benchmark: Benchmark, args: argparse.Namespace, seeds: Sequence[int]) -> Cells:
    """All cells of some seeds."""
    cells = [
        dict(method=method, budget=budget, seed=seed, layers=layers, injection=injection)
        for seed in seeds
        for method in args.methods
        for makes in [benchmark.methods[method].makes_images]
        for budget in (benchmark.budgets if makes else [0])
        for layers in args.layers
        for injection in (args.injections if makes else [None])
    ]
    return {benchmark.path(**cell): partial(benchmark.cell, **cell) for cell in cells}


def line(cell: Mapping[str, Any]) -> str:
    """What to print of a cell."""
    return (
        f'{cell["method"]} {cell["budget"]} images, seed {cell["seed"]}, {kind_of(cell)}: worst '
        f'group {cell["worst_group"]:.3f}, mean {cell["mean"]:.3f}'
    )


def run_cells(
    cells: Cells,
    own: Cells,
    line: Callable[[Mapping[str, Any]], str],
    report: Callable[[list[dict[str, Any]]], None] | None = None,
) -> None:
    """Run what is left of the own cells, and report on all that are finished after each.

    Args:
        cells: Those of all processes.
        own: Those of this process.
        line: What to print of a cell.
        report: Writes the report on finished cells, whoever ran them. With it, this also waits for
            the cells of the other processes, and reports on them as they come.
    """
    known: dict[Path, dict[str, Any]] = {}

    def finished() -> list[dict[str, Any]]:
        for path, cell in cells.items():
            if path not in known and path.exists():
                known[path] = cell()
        return [known[path] for path in cells if path in known]

    before, began = len(finished()), time.monotonic()
    if report is not None and before:
        print(f'{before} of {len(cells)} cells are finished', flush=True)
        report(finished())
    for path, cell in own.items():
        if path in known:
            continue
        known[path] = cell()
        done = finished()
        left = (len(cells) - len(done)) * (time.monotonic() - began) / (len(done) - before)
        print(
            f'[{len(done)}/{len(cells)}] {line(known[path])}; {left / 60:.0f} min left', flush=True
        )
        if report is not None:
            report(done)
    while report is not None and len(known) < len(cells):
        time.sleep(1)
        reported = len(known)
        if len(finished()) > reported:
            report(finished())


def main() -> None:
    """Run all cells, with results.json, results.md, curves.png and meta.json after each."""
    run_jobs(work, parse_args())
