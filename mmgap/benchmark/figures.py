# SPDX-License-Identifier: Apache-2.0
"""Finished cells: which ones, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Cell = Mapping[str, Any]


def interval(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean (Student's t); NaN for a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float('nan')
    return float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)


def select(cells: Sequence[Cell], **which: Any) -> dict[int, Cell]:
    """Cells by seed."""
    return {c['seed']: c for c in cells if all(c[k] == v for k, v in which.items())}


def on_split(cell: Cell, split: str) -> dict[str, Any]:
    """A cell with its figures on a further split in place of those on test."""
    return {**cell, **cell['others'][split]}


def kind_of(cell: Cell) -> str:
    """Which layers a cell has trained and, where it was asked for, by which injection."""
    layers, injection = cell['layers'], cell.get('injection')
    return f'{layers}, {injection}' if injection else layers


def of_each_injection(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells whose ``layers`` tell the injection too; those without images are of each."""
    named = [name for name in dict.fromkeys(c.get('injection') for c in cells) if name]
    kinds = []
    for cell in cells:
        own = named if named and not cell['budget'] else [cell.get('injection')]
        kinds += [{**cell, 'layers': kind_of({**cell, 'injection': name})} for name in own]
    order = list(dict.fromkeys(cell['layers'] for cell in kinds))
    return sorted(kinds, key=lambda cell: order.index(cell['layers']))


def title(layers: str) -> str:
    """What was trained, and how images entered, as a heading has it."""
    name, _, injection = layers.partition(', ')
    trained = 'last layer' if name == 'last' else 'whole network'
    return f'{trained}, {injection}' if injection else trained


def is_error(cells: Sequence[Cell]) -> bool:
    """Whether less is better."""
    return any(cell.get('measure') == 'abs_rel' for cell in cells)


def measured(cells: Sequence[Cell]) -> str:
    """What the cells measure, as an axis has it."""
    if is_error(cells):
        return 'AbsRel in percent (lower is better)'
    of_classes = any(cell.get('measure') == 'f1' for cell in cells)
    return 'F1 of classes in percent' if of_classes else 'Accuracies in percent'
