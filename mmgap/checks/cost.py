# SPDX-License-Identifier: Apache-2.0
"""Measure what a search step and an image of a config cost on this machine.

Time and peak memory of a step of the search, by how the gradient goes back through the denoising
chain and by number format, beside a plain loop that keeps the whole graph of the stock pipeline
and encodes sources and negative prompt anew; and images per second of the synthesis beside the
stock pipeline. Then search steps beside their floor (networks alone, forward and backward, in
turn in one process), eager and compiled, and what the CPU does in a step outside of networks and
tensor operations (``host``: Python, choosing, reading, resizing and hashing sources, tokenising,
copies out of PyTorch; networks are replaced by an operation or two, and what PyTorch's profiler
counts as its operators is taken off).

Generator, target, feedback and batch sizes are the config's; its data is not needed: sources are
birds of the embedded world, and terms of guidance are left out. Each case runs in a process of its
own.

``--random FOLDER`` measures without weights: a Stable Diffusion 1.5 of random weights, in its real
layer sizes, is written there. ``--cfg-options custom_hooks.0.search.batch_size=1`` changes the
config. Writes ``OUT/results.json`` and ``OUT/results.md``; cases that are in it already are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from tqdm import tqdm

from mmgap.checks.cost_cases import BATCHES, Case, timed
from mmgap.checks.random_sd15 import random_pipeline
from mmgap.configs import Changes, gap_hooks, name_of, read_config
from mmgap.files import fingerprint, write_bytes, write_json
from mmgap.loop import environment
from mmgap.loop.parts import settings_of
from mmgap.machine import device_name, memory, peak, reset_peak
from mmgap.weights import without_pretrained

LOOP, STOCK, SYNTHESIS = 'plain loop', 'stock pipeline', 'synthesis'
# Of a search step: arguments of GradientPolicy.
GRADIENTS: dict[str, dict[str, Any]] = {
    'full': dict(mode='full'),
    'full, steps checkpointed': dict(mode='full', checkpoint='steps'),
    'full, blocks checkpointed': dict(mode='full', checkpoint='blocks'),
    'last_k, k=2': dict(mode='last_k', k=2),
    'last_k, k=2, blocks checkpointed': dict(mode='last_k', k=2, checkpoint='blocks'),
    'shortcut': dict(mode='shortcut'),
    'shortcut, blocks checkpointed': dict(mode='shortcut', checkpoint='blocks'),
}
KNOWN, COMPILED = 'full, sources seen before', 'full, compiled, sources seen before'
SYNTHESIS_COMPILED = 'synthesis, compiled'
FLOORS = {'floor': False, 'floor, compiled': True}  # compiled?
HOSTS = {'host': True, 'host, new sources': False}  # seen before?
DRAWS = (STOCK, SYNTHESIS, SYNTHESIS_COMPILED)
CASES = (LOOP, *GRADIENTS, KNOWN, COMPILED, *DRAWS, *FLOORS, *HOSTS)
# Of weights and of matrix products.
FORMATS: dict[str, dict[str, Any]] = {
    'float32': dict(dtype='float32', autocast=None),
    'autocast': dict(dtype='float32', autocast='bfloat16'),
    'bfloat16': dict(dtype='bfloat16', autocast=None),
}
OUT_OF_MEMORY = 'out of memory'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file with an InpaintingGenerator, or the name of a shipped one'
    )
    parser.add_argument('--random', type=Path, metavar='FOLDER', help='random weights, kept there')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=CASES)
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=list(FORMATS))
    parser.add_argument('--repeats', type=int, default=3, help='measured, after one to warm up')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--cfg-options', nargs='+', action=Changes, help='key=value …')
    parser.add_argument('--only', nargs=2, help=argparse.SUPPRESS)  # one case, in this process
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f'--repeats must be at least 1, got {args.repeats}')
    return args


def load(args: argparse.Namespace) -> Config:
    """The config with sources that need no files, and no weights of the target's.

    Raises:
        SystemExit: If there is none, or it has no GAPHook with an InpaintingGenerator.
    """
    config = read_config(args.config, args.cfg_options)
    hooks = gap_hooks(config)
    kinds = [name_of((hook.get('generator') or {}).get('type')) for hook in hooks]
    if kinds != ['InpaintingGenerator']:
        raise SystemExit(
            f'{args.config} must have one GAPHook with an mmgap.InpaintingGenerator, and has '
            f'{kinds}'
        )
    config.custom_hooks = hooks
    (hook,) = config.custom_hooks
    config.train_dataloader.dataset = dict(type='mmgap.ToyBirds', split='train', size=512)
    config.model = without_pretrained(config.model)
    config.load_from = None
    hook.critic = False
    for name in ('gradient', 'dtype', 'autocast'):  # each case has its own
        hook.generator.pop(name, None)
    if args.random is not None:  # its tokenizer knows few words; the cost is that of a sentence
        hook.generator.update(model=str(args.random), negative_prompt='', lora=None)
        if not (args.random / 'model_index.json').exists():
            temporary = args.random.with_name(f'.{args.random.name}.tmp')
            random_pipeline().to(torch.float16).save_pretrained(temporary)
            temporary.replace(args.random)
    return config


def measure(config: Config, case: str, numbers: str, repeats: int) -> dict[str, Any]:
    """Seconds and peak bytes of one case; one run before warms up."""
    changes = dict(FORMATS[numbers], gradient=GRADIENTS.get(case, {}))
    autocast = changes.pop('autocast')
    # It has autocast around it, and weights that know nothing of it.
    stock = case in (LOOP, STOCK)
    compiled = case in (COMPILED, SYNTHESIS_COMPILED) or FLOORS.get(case, False)
    settings = dict(changes, autocast=None if stock else autocast, compile=compiled)
    config.custom_hooks[0].generator.update(settings)
    ready = Case(config, searches=case not in DRAWS, stock=stock)
    ready.generator.autocast = getattr(torch, autocast) if autocast else None
    about = dict(size=list(ready.generator.size), images=ready.images)
    if compiled and not ready.generator.compiled:
        return dict(failed='cannot compile here')
    if case in FLOORS:
        return dict(about, **ready.against_the_floor(repeats, compiled))
    if case in HOSTS:
        return dict(about, **ready.host(repeats, known=HOSTS[case]))
    with tempfile.TemporaryDirectory() as folder:
        run = {
            LOOP: ready.loop_step,
            KNOWN: ready.known_step,
            COMPILED: ready.known_step,
            STOCK: lambda number: ready.stock_images(number, Path(folder)),
            SYNTHESIS: lambda number: ready.synthesis(number, Path(folder)),
            SYNTHESIS_COMPILED: lambda number: ready.synthesis(number, Path(folder)),
        }.get(case, ready.search_step)
        seconds, bytes_ = [], []
        for number in range(repeats + 1):
            reset_peak()
            seconds.append(timed(partial(run, number)))
            bytes_.append(peak())
    return dict(
        about,
        images=ready.images * (BATCHES if case in DRAWS else 1),
        seconds=statistics.median(seconds[1:]),
        slowest=max(seconds[1:]),
        peak=max(bytes_[1:]),
    )


def only(args: argparse.Namespace) -> None:
    """Measure one case and print it as JSON; used up memory ends it, not the machine."""
    if not torch.cuda.is_available() and sys.platform == 'linux':
        import resource

        limit = int(0.92 * memory())
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    MMLogger.get_instance('mmgap', log_level='ERROR')
    try:
        case, numbers = args.only
        row = measure(load(args), case, numbers, args.repeats)
    except (torch.OutOfMemoryError, MemoryError):
        row = dict(failed=OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        row = dict(failed=OUT_OF_MEMORY)
    print(json.dumps(row))


def in_a_process(args: argparse.Namespace, case: str, numbers: str) -> dict[str, Any]:
    """What :func:`only` finds.

    Raises:
        SystemExit: If it failed for another reason than memory.
    """
    command = [sys.executable, '-m', 'mmgap.checks.cost', *sys.argv[1:], '--only', case, numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9:  # by a system that had no more to give
        return dict(failed=OUT_OF_MEMORY)
    if done.returncode:
        raise SystemExit(f'{done.stderr}\n{case} in {numbers} failed: see above')
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = results['rows']
    draws = [row for row in rows if row['case'] in DRAWS]
    floors = [row for row in rows if row['case'] in FLOORS]
    hosts = [row for row in rows if row['case'] in HOSTS]
    searches = [row for row in rows if row not in (*draws, *floors, *hosts)]
    about = results['about']
    size = next(
        (f'{row["size"][0]}x{row["size"][1]} pixels, ' for row in rows if 'size' in row), ''
    )
    lines = [
        f'# {about["device"]}',
        '',
        f'`{about["config"]}`{about["changes"]}; {about["weights"]}, {size}median of '
        f'{about["repeats"]} after one to warm up. Memory is the peak of {about["memory"]}.',
        '',
    ]
    if searches:
        steps = about['search_steps']
        lines += [
            f'A search step, {steps} denoising steps:',
            '',
            '| gradient | numbers | batch | s/step | s/image | GiB |',
            '|---|---|---|---|---|---|',
            *(line(row, row.get('seconds', 0) / row.get('images', 1)) for row in searches),
            '',
        ]
    if draws:
        lines += [
            f'Synthesis, {about["steps"]} denoising steps, images as PNG on the disk:',
            '',
            '| | numbers | images | s | images/s | GiB |',
            '|---|---|---|---|---|---|',
            *(line(row, row.get('images', 0) / row.get('seconds', 1)) for row in draws),
            '',
        ]
    if floors:
        lines += [
            'Search steps, sources seen before, beside their floor: UNet, VAE decoder and target, '
            'forward and backward, and nothing else; in turn in one process, medians:',
            '',
            '| | numbers | batch | floor s | step s | of the floor | steps checkpointed s | of the '
            'floor |',
            '|---|---|---|---|---|---|---|---|',
            *(floor_line(row) for row in floors),
            '',
        ]
    if hosts:
        lines += [
            'What the CPU does in a step outside of networks and tensor operations (`host`): '
            'Python, choosing, reading, resizing and hashing sources, tokenising, copies out of '
            'PyTorch. Networks are replaced by an operation or two; from the step that is left the '
            "time in PyTorch's operators is taken off:",
            '',
            '| | numbers | batch | step left, ms | operators, ms | host, ms |',
            '|---|---|---|---|---|---|',
            *(host_line(row) for row in hosts),
            '',
        ]
    return '\n'.join(lines)


def floor_line(row: dict[str, Any]) -> str:
    """A row of the table of floors."""
    start = f'| {row["case"]} | {row["numbers"]} |'
    if 'failed' in row:
        return f'{start} {row["failed"]} | | | | | |'
    steps = (row['step'], row['checkpointed'])
    parts = (f'{step:.3g} | {step / row["seconds"]:.2f}' for step in steps)
    return f'{start} {row["images"]} | {row["seconds"]:.3g} | {" | ".join(parts)} |'


def host_line(row: dict[str, Any]) -> str:
    """A row of the table of what the CPU does."""
    start = f'| {row["case"]} | {row["numbers"]} |'
    if 'failed' in row:
        return f'{start} {row["failed"]} | | | |'
    numbers = (1000 * row[name] for name in ('step', 'operators', 'seconds'))
    return f'{start} {row["images"]} | {" | ".join(f"{number:.1f}" for number in numbers)} |'


def line(row: dict[str, Any], rate: float) -> str:
    """A row of a table."""
    start = f'| {row["case"]} | {row["numbers"]} |'
    if 'failed' in row:
        return f'{start} {row["failed"]} | | | |'
    taken = f'{row["peak"] / 2**30:.1f}' if row['peak'] else ''
    return f'{start} {row["images"]} | {row["seconds"]:.3g} | {rate:.3g} | {taken} |'


def describe(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What was measured, and on what."""
    hook = config.custom_hooks[0]
    settings = settings_of(hook)
    gpu = torch.cuda.is_available()
    changes = ', '.join(f'`{k}={v}`' for k, v in (args.cfg_options or {}).items())
    return dict(
        device=device_name(),
        config=args.config,
        changes=f' with {changes}' if changes else '',
        weights='random weights' if args.random else str(hook.generator.model),
        search_steps=settings.search.num_inference_steps,
        steps=settings.synthesis.num_inference_steps,
        repeats=args.repeats,
        memory="the GPU's allocations" if gpu else 'the process, PyTorch itself in it',
        environment=environment({}),
    )


def main() -> None:
    args = parse_args()
    if args.only:
        only(args)
        return
    config = load(args)
    about = describe(args, config)
    key = fingerprint([about, config.custom_hooks, config.model])
    file, rows = args.out / 'results.json', []
    if file.exists():
        before = json.loads(file.read_text())
        if before['key'] != key:
            raise SystemExit(f'{file} was measured with other settings; give another --out')
        rows = before['rows']
    wanted = [(case, numbers) for numbers in args.formats for case in args.cases]
    wanted = [w for w in wanted if w not in [(row['case'], row['numbers']) for row in rows]]
    for case, numbers in tqdm(wanted, desc='cases'):
        row = dict(case=case, numbers=numbers, **in_a_process(args, case, numbers))
        rows.append(row)
        rows.sort(key=lambda r: (CASES.index(r['case']), list(FORMATS).index(r['numbers'])))
        results = dict(key=key, about=about, rows=rows)
        write_json(file, results)
        write_bytes(args.out / 'results.md', table(results).encode())
    print(table(dict(about=about, rows=rows)))


if __name__ == '__main__':
    main()
