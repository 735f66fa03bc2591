# SPDX-License-Identifier: Apache-2.0
"""Tables of the benchmark of targets, and its results in the format of MMPretrain's metafiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmgap.benchmark.figures import measured
from mmgap.benchmark.report import incomplete, spread
from mmgap.files import write_bytes, write_json

Cell = Mapping[str, Any]
# What the worst group and the mean are called, by what the cells measure.
METRICS = dict(
    accuracy=('Worst-group accuracy', 'Mean of group accuracies'),
    f1=('Worst F1 of a class', 'Macro F1'),
    abs_rel=('AbsRel of the worst group', 'Mean AbsRel of groups'),
)


def write_report(
    out: Path,
    cells: Sequence[Cell],
    transfers: Sequence[Cell],
    meta: Mapping[str, Any],
    total: int,
) -> None:
    """Write ``results.json``, ``results.md``, ``metafile.yml`` and ``meta.json``.

    Args:
        out: Folder of the results.
        cells: Targets by methods and seeds, those that are finished.
        transfers: The transfer matrix, over seeds, as far as it is finished.
        meta: What the results belong to: command, parameters of each model, method and budget of
            the transfer, layers, name of the data and of their split, config, versions.
        total: How many cells there will be, of both kinds.
    """
    write_json(out / 'meta.json', meta)
    write_json(out / 'results.json', dict(cells=list(cells), transfers=list(transfers)))
    seeds = sorted({cell['seed'] for cell in cells})
    network = 'last layer' if meta['layers'] == 'last' else 'whole network'
    lines = [
        '# Targets',
        '',
        f'`{meta["command"]}`',
        '',
        f'Seeds: {seeds}. {measured(cells)} on {meta["test"]}, {network} fine-tuned from each '
        "target's own base checkpoint: mean over seeds ± standard deviation.",
        *incomplete(len(cells) + len(transfers), total),
        '',
        '## What each target gains',
        '',
        *_gains(cells, meta['models']),
    ]
    images = f'{meta["budget"]} images by `{meta["method"]}` against the model of the row'
    matrices = {
        'loss': (f'Loss of the model of the column, as it was before, on {images}.', 1, 2),
        'accuracy': ('Its accuracy on them in percent.', 100, 0),
        'worst_group': (f'Its worst group in percent when trained on {images}.', 100, 0),
    }
    for name, (text, scale, digits) in matrices.items():
        title = name.replace('_', ' ').capitalize()
        lines += ['', f'## Transfer: {title.lower()}', '', text, '']
        lines += _matrix(transfers, list(meta['models']), name, scale, digits)
    write_bytes(out / 'results.md', '\n'.join([*lines, '']).encode())
    finished = {cell['model'] for cell in cells if cell['method'] == meta['method']}
    models = dict(Models=[_entry(cells, meta, name) for name in meta['models'] if name in finished])
    write_bytes(out / 'metafile.yml', yaml.safe_dump(models, sort_keys=False).encode())


def _select(cells: Sequence[Cell], model: str, method: str) -> list[Cell]:
    return [cell for cell in cells if cell['model'] == model and cell['method'] == method]


def _gains(cells: Sequence[Cell], models: Mapping[str, int]) -> list[str]:
    lines = [
        '| model | parameters | method | images | worst group | mean of groups |',
        '|---|---|---|---|---|---|',
    ]
    for model, parameters in models.items():
        for method in dict.fromkeys(cell['method'] for cell in cells):
            row = _select(cells, model, method)
            if not row:
                continue
            shown = ' | '.join(spread([100 * c[k] for c in row]) for k in ('worst_group', 'mean'))
            size = f'{parameters / 1e6:.2f} M'
            lines.append(f'| {model} | {size} | {method} | {row[0]["images"]} | {shown} |')
    return lines


def _matrix(
    transfers: Sequence[Cell], models: Sequence[str], name: str, scale: float, digits: int
) -> list[str]:
    lines = ['| images of | ' + ' | '.join(models) + ' |', '|---' * (len(models) + 1) + '|']
    for row in models:
        shown = []
        for column in models:
            values = [
                scale * c[name] for c in transfers if (c['images_of'], c['model']) == (row, column)
            ]
            shown.append(spread(values, f'.{digits}f') if values else '')
        lines.append(f'| {row} | ' + ' | '.join(shown) + ' |')
    return lines


def _entry(cells: Sequence[Cell], meta: Mapping[str, Any], model: str) -> dict[str, Any]:
    """One model as MMPretrain's metafiles have them."""
    data = meta['data']
    own = _select(cells, model, meta['method'])
    worst, mean = METRICS[own[0].get('measure', 'accuracy')]
    metrics = {
        worst: 100 * float(np.mean([c['worst_group'] for c in own])),
        mean: 100 * float(np.mean([c['mean'] for c in own])),
    }
    return {
        'Name': f'{meta["method"]}_{model}_{data.lower()}',
        'Metadata': {'Training Data': data, 'Parameters': meta['models'][model]},
        'In Collection': 'GAP',
        'Results': [
            {
                'Dataset': data,
                'Task': 'Image Classification',
                'Metrics': {name: round(value, 2) for name, value in metrics.items()},
            }
        ],
        'Config': meta['config'],
    }
