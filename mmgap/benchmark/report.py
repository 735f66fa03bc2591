# SPDX-License-Identifier: Apache-2.0
"""Tables and curves of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgap.benchmark.curves import write_curves
from mmgap.benchmark.figures import (
    Cell,
    interval,
    is_error,
    measured,
    of_each_injection,
    select,
    title,
)
from mmgap.files import read_json, write_bytes, write_json


def write_report(
    out: Path,
    cells: Sequence[Cell],
    methods: Mapping[str, str],
    meta: Mapping[str, Any],
    folder: Path,
    total: int,
) -> None:
    """Write ``results.json``, ``results.md`` and ``curves.png``.

    Args:
        out: Folder of the benchmark.
        cells: Those that are finished; one at least.
        methods: What each method is, in the order of the tables.
        meta: What the results belong to, with the name of the split as ``test``.
        folder: Where the report goes.
        total: How many cells there will be.
    """
    write_json(folder / 'results.json', list(cells))
    number, cells = len(cells), of_each_injection(cells)
    lines = [
        '# Methods at equal image budgets',
        '',
        f'`{meta["command"]}`',
        '',
        f'Seeds: {sorted({c["seed"] for c in cells})}. {measured(cells)} on {meta["test"]}: '
        'mean over seeds ± standard deviation. "vs none" is the paired difference over seeds in '
        'the worst group with its 95 % interval (Student). Budgets count kept images; in brackets '
        'how many are trained on where that is another number. '
        "Evaluations are calls of the generator's networks for each image of the budget, search, "
        'aim and dropped images included: a call of the UNet on one image counts 1, with gradient '
        '3, the others by their operations.',
        *incomplete(number, total),
    ]
    for layers in dict.fromkeys(c['layers'] for c in cells):
        part = [c for c in cells if c['layers'] == layers]
        lines += ['', f'## Fine-tuning the {title(layers)}', '', *_table(part, methods)]
    for own in meta['compare']:
        lines += _paired(cells, methods, own)
    lines += _groups(cells, methods) + _other_splits(cells, methods)
    lines += _chosen(cells, methods)
    lines += ['', '## The images', '', *_images(out, cells, methods, meta), '']
    write_bytes(folder / 'results.md', '\n'.join(lines).encode())
    # A figure takes 0.2 to 0.4 s on one core, and the first of a process one more: too much for
    # each of many short cells.
    figure = folder / 'curves.png'
    if number == total or not figure.exists() or time.time() - figure.stat().st_mtime > 30:
        write_curves(figure, cells, methods)


def incomplete(number: int, total: int) -> list[str]:
    """What a reader must know of tables that lack cells."""
    if number == total:
        return []
    return [
        '',
        f'**Incomplete: {number} of {total} cells.** Each figure is over the seeds that are '
        'finished so far; in another row they may be others.',
    ]


def _table(cells: Sequence[Cell], methods: Mapping[str, str]) -> list[str]:
    lines = [
        '| method | images | not kept | evaluations an image | worst group | vs none | mean of '
        'groups | seconds a cell |',
        '|---|---|---|---|---|---|---|---|',
    ]
    baseline = select(cells, method='none')
    for method in methods:
        for budget in sorted({c['budget'] for c in cells if c['method'] == method}):
            row = select(cells, method=method, budget=budget)
            worst = [100 * c['worst_group'] for c in row.values()]
            mean = [100 * c['mean'] for c in row.values()]
            gains = [
                100 * (cell['worst_group'] - baseline[seed]['worst_group'])
                for seed, cell in row.items()
                if seed in baseline
            ]
            versus = spread(gains, '+.1f', interval) if gains else ''
            trained = np.mean([c.get('images', budget) for c in row.values()])
            more = f' ({trained:.0f})' if budget and round(trained) != budget else ''
            lines.append(
                f'| {method} | {budget}{more} | '
                f'{np.mean([c["dropped"] for c in row.values()]):.0f} | {_cost(row)} | '
                f'{spread(worst)} | {versus if method != "none" else ""} | {spread(mean)} | '
                f'{np.mean([c["seconds"] for c in row.values()]):.1f} |'
            )
    return lines


def _cost(row: Mapping[int, Cell]) -> str:
    """Network evaluations for each kept image; nothing where they were not counted."""
    costs = [cell.get('evaluations') for cell in row.values()]
    if None in costs or not all(cell['budget'] for cell in row.values()):
        return ''
    return f'{np.mean([c["evaluations"] / c["budget"] for c in row.values()]):.0f}'


def _paired(cells: Sequence[Cell], methods: Mapping[str, str], own: str) -> list[str]:
    """What one method has above each other one, paired over seeds."""
    if own not in methods:
        return []
    lines = ['', f'## {own} against the others', '']
    if not is_error(cells):
        lines.append(
            f'Worst group of {own} minus that of the other method at the same budget (at its only '
            'one where it makes no images), paired over seeds, with 95 % interval.'
        )
        return lines + _pairs(cells, methods, own, lambda c: 100 * c['worst_group'], '')
    lines.append(
        f'Hundred times the change of the logarithm of AbsRel from the other method to {own} '
        '(small ones are percent), at the same budget (at its only one where it makes no images), '
        'paired over seeds, with 95 % interval. Below zero is better.'
    )
    for name in ('mean', *cells[0]['groups']):

        def logarithm(cell: Cell, name: str = name) -> float:
            return 100 * np.log(cell['mean'] if name == 'mean' else cell['groups'][name])

        lines += _pairs(cells, methods, own, logarithm, f', {name}')
    return lines


def _pairs(
    cells: Sequence[Cell],
    methods: Mapping[str, str],
    own: str,
    value: Callable[[Cell], float],
    of: str,
) -> list[str]:
    """A table for each choice of layers: differences of a value of the cells."""
    settings = _settings(cells, methods)
    lines: list[str] = []
    for layers in dict.fromkeys(c['layers'] for c in cells):
        budgets = sorted({k[1] for k in settings if k[0] == own and k[2] == layers})
        if not budgets:  # none of its cells is finished
            continue
        heads = [f'{budget} images' for budget in budgets] + ['all budgets'] * (len(budgets) > 1)
        lines += [
            '',
            f'| {title(layers)}{of} | {" | ".join(heads)} |',
            '|---' * (1 + len(heads)) + '|',
        ]
        for other in methods:
            if other == own:
                continue
            gains: list[dict[int, float]] = []
            for budget in budgets:
                mine = settings[own, budget, layers]
                without_images = settings.get((other, 0, layers), {})
                theirs = settings.get((other, budget, layers), without_images)
                both = sorted(set(mine) & set(theirs))
                gains.append({s: value(mine[s]) - value(theirs[s]) for s in both})
            if len(budgets) > 1:  # of each seed the mean, where it has all
                every = set.intersection(*map(set, gains))
                gains.append({s: float(np.mean([one[s] for one in gains])) for s in sorted(every)})
            row = [spread([*one.values()], '+.1f', interval) if one else '' for one in gains]
            lines.append(f'| {other} | {" | ".join(row)} |')
    return lines


def _groups(cells: Sequence[Cell], methods: Mapping[str, str]) -> list[str]:
    """Each group by itself, where groups are shifts rather than what methods balance."""
    if not is_error(cells):
        return []
    names = list(cells[0]['groups'])
    lines = ['', '## Each group', '', f'| method | images | layers | {" | ".join(names)} |']
    lines.append('|---' * (3 + len(names)) + '|')
    for (method, budget, layers), row in _settings(cells, methods).items():
        values = [[100 * cell['groups'][name] for cell in row.values()] for name in names]
        shown = ' | '.join(spread(v, '.2f') for v in values)
        lines.append(f'| {method} | {budget} | {layers} | {shown} |')
    return lines


def _other_splits(cells: Sequence[Cell], methods: Mapping[str, str]) -> list[str]:
    """Worst groups on the further splits that the cells were evaluated on."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.get('others') or ()))
    if not names:
        return []
    lines = ['', '## Worst group and mean of groups on other splits', '']
    lines += [
        f'| method | images | layers | {" | ".join(names)} |',
        '|---' * (3 + len(names)) + '|',
    ]
    for (method, budget, layers), row in _settings(cells, methods).items():
        shown = ' | '.join(
            ', '.join(
                spread([100 * cell['others'][name][figure] for cell in row.values()])
                for figure in ('worst_group', 'mean')
            )
            for name in names
        )
        lines.append(f'| {method} | {budget} | {layers} | {shown} |')
    return lines


def _chosen(cells: Sequence[Cell], methods: Mapping[str, str]) -> list[str]:
    """What a user gets who chooses budget and layers on validation data."""
    ways = {'val': 'worst_group', 'val_id': 'mean'}
    if not all(name in (cell.get('others') or {}) for cell in cells for name in ways):
        return []
    lines = [
        '',
        '## Chosen on validation data',
        '',
        'Test worst group of the budget and layers that are best on average over seeds: by worst '
        'group on `val`, which is balanced and so leaks the shift, and by accuracy on `val_id`, '
        'which is distributed like the training data.',
        '',
        '| method | by val | test worst group | by val_id | test worst group |',
        '|---|---|---|---|---|',
    ]
    for method in methods:
        row = [method]
        for name, metric in ways.items():
            own = {k: v for k, v in _settings(cells, methods).items() if k[0] == method}
            if not own:
                break
            score = {
                k: np.mean([cell['others'][name][metric] for cell in v.values()])
                for k, v in own.items()
            }
            best = (min if is_error(cells) else max)(score, key=lambda k: score[k])
            worst = [100 * cell['worst_group'] for cell in own[best].values()]
            row += [f'{best[1]} images, {best[2]}', spread(worst)]
        if len(row) > 1:
            lines.append(f'| {" | ".join(row)} |')
    return lines


def _settings(
    cells: Sequence[Cell], methods: Mapping[str, str]
) -> dict[tuple[str, int, str], dict[int, Cell]]:
    """Cells by (method, budget, layers), then by seed, in the tables' order."""
    keys = {(c['method'], c['budget'], c['layers']) for c in cells}
    order = sorted(keys, key=lambda k: (list(methods).index(k[0]), k[1], k[2]))
    return {k: select(cells, method=k[0], budget=k[1], layers=k[2]) for k in order}


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def spread(
    values: Sequence[float],
    form: str = '.1f',
    half: Callable[[Sequence[float]], float] = _std,
) -> str:
    """Mean ± standard deviation or another half width; a single value has none."""
    mean = format(np.mean(values), form)
    return mean if len(values) == 1 else f'{mean} ± {format(half(values), form.lstrip("+"))}'


def _images(
    out: Path, cells: Sequence[Cell], methods: Mapping[str, str], meta: Mapping[str, Any]
) -> list[str]:
    """Per method: how the target fares on its images before any fine-tuning."""
    lines = [
        'Loss and accuracy of the base model on images of each prompt around held-out sources, one '
        'seed per source: on sources of the class that the prompt was searched for (of all classes '
        'where it has none), and crossed, on sources of all classes, as images are drawn. '
        '`places.json` has the shares of places where a probe for it was run.',
        '',
        'The probe is linear, on pooled features of the base model: held-out accuracy between '
        'generated and real images, and in brackets between two draws of real ones.',
        '',
        'Coverage is the share of real images (`benchmark.coverage`) with a generated one among '
        "their five nearest in CLIP's space, density how many such balls a generated one lies in, "
        'over five (arXiv 2002.09797).',
        '',
        '| method | | target loss | accuracy | crossed target loss | probe | coverage, density | '
        'seconds, search + synthesis |',
        '|---|---|---|---|---|---|---|---|',
    ]
    seeds = sorted({c['seed'] for c in cells})
    keys = meta.get('keys') or {}
    for method, text in methods.items():
        facts = [one for seed in seeds for one in _latest(out, method, seed, keys.get(method))]
        asked = meta.get('coverage_of')
        alike = [f for f in facts if asked in (None, f.get('coverage_of'))]
        covered = [(f['coverage'], f['density']) for f in alike if f.get('coverage') is not None]
        spreads = ', '.join(spread(values, '.2f') for values in zip(*covered, strict=True))
        drawn = [f for f in facts if 'prompts' in f]
        facts = [f for f in drawn if 'held_out' in f]
        probes = [c['probe'] for c in cells if c['method'] == method and c.get('probe')]
        probe = ''
        if probes and None not in [one['generated'] for one in probes]:
            made, control = (
                np.mean([p[kind] for p in probes]) for kind in ('generated', 'control')
            )
            probe = f'{made:.2f} ({control:.2f})'
        shown = [
            spread([f['held_out'][name] for f in facts], '.2f') if facts else ''
            for name in ('target_loss', 'accuracy', 'crossed_target_loss')
        ]
        seconds = f'{np.mean([f["seconds"] for f in drawn]):.0f}' if drawn else ''
        lines.append(
            f'| {method} | {text} | {" | ".join(shown)} | {probe} | {spreads} | {seconds} |'
        )
    return lines


def _latest(out: Path, method: str, seed: int, key: str | None) -> list[dict[str, Any]]:
    """What is known of a method's pool of a seed: of several the largest, and then the latest.

    With a key, of those alone that were made with these settings of the method.
    """
    files = out.glob(f'pools/{method}-{seed}-*/about.json')
    facts = [(read_json(file), file.stat().st_mtime_ns) for file in files]
    own = [(one.get('images', 0), time, one) for one, time in facts if one['method'] == method]
    own = [entry for entry in own if key in (None, entry[2].get('key'))]
    return [max(own, key=lambda entry: entry[:2])[2]] if own else []
