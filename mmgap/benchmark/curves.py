# SPDX-License-Identifier: Apache-2.0
"""Curves of a benchmark."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgap.benchmark.figures import Cell, interval, is_error, measured, select, title
from mmgap.files import write_bytes


def write_curves(path: Path, cells: Sequence[Cell], methods: Mapping[str, str]) -> None:
    """Worst group over images and over evaluations: a line for each method, 95 % intervals."""
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(c['layers'] for c in cells))
    scales = ['images'] + ['evaluations'] * any(c.get('evaluations') for c in cells)
    figure, axes = plt.subplots(
        len(scales),
        len(kinds),
        figsize=(5.5 * len(kinds) + 1.3, 4 * len(scales)),
        squeeze=False,
    )
    for (row, scale), (column, layers) in itertools.product(enumerate(scales), enumerate(kinds)):
        axis = axes[row][column]
        part = [c for c in cells if c['layers'] == layers]
        for i, method in enumerate(methods):
            budgets = sorted({c['budget'] for c in part if c['method'] == method})
            values = [
                [100 * c['worst_group'] for c in select(part, method=method, budget=b).values()]
                for b in budgets
            ]
            if not budgets:
                continue
            middle = np.array([np.mean(v) for v in values])
            half = np.nan_to_num([interval(v) for v in values])
            if method == 'none':
                axis.axhline(middle[0], color='grey', linestyle='--', label='none')
                continue
            places = budgets
            if scale == 'evaluations':
                costs: list[list[Any]] = [
                    [c.get('evaluations') for c in select(part, method=method, budget=b).values()]
                    for b in budgets
                ]
                if any(None in cost for cost in costs):  # of real images, or not counted
                    continue
                places = [np.mean(cost) for cost in costs]
            axis.plot(places, middle, marker='o', color=f'C{i}', label=method)
            axis.fill_between(places, middle - half, middle + half, color=f'C{i}', alpha=0.12)
        if scale == 'evaluations':
            axis.set_xscale('log')
        if not is_error(cells):
            axis.set_ylim(0, 100)
        axis.set(
            title=title(layers),
            xlabel=dict(images='images', evaluations='network evaluations')[scale],
            ylabel=f'worst group, {measured(cells)}',
        )
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='center right', fontsize=9)
    figure.tight_layout(rect=(0, 0, 1 - 1.3 / figure.get_figwidth(), 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    plt.close(figure)
    write_bytes(path, buffer.getvalue())
