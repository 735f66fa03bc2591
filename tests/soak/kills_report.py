# SPDX-License-Identifier: Apache-2.0
"""Tables of the kills: where they came, how trainings ended, how long resumes took."""

from __future__ import annotations

import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.soak.board import STAGES
from tests.soak.trainings import MODES, Cell

# Kills that each stage of a cell shall have; of training, each mode of injection.
QUOTA = 8


def write_report(out: Path, chains: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> None:
    """Write ``kills.md`` beside ``kills.jsonl``."""
    kills = [dict(kill, **_of(chain)) for chain in chains for kill in chain['kills']]
    different = [chain for chain in chains if chain['different']]
    lines = [
        '# Kills',
        '',
        '`python -m tests.soak.kills --out docs/results/soak`: trainings in forks of one process, '
        'SIGKILL from outside at a random moment. Python '
        f'{platform.python_version()}, torch {torch.__version__}, one thread for each process.',
        '',
        f'**{len(kills)} kills in {len(chains)} chains; {len(different)} chains have not ended '
        'bitwise as the training that was left alone** (weights, optimiser, prompts, images, '
        'manifest, report, names of files; none half-written, none doubled).',
        '',
        *_stages(kills, cells),
        '',
        *_training(kills, cells),
        '',
        *_resumes(kills),
    ]
    if different:
        lines += ['', '## Not as they should be', '']
        lines += [
            f'- {chain["cell"]}, {chain["mode"]}, chain {chain["number"]}: '
            f'{", ".join(chain["different"][:6])}'
            for chain in different
        ]
    (out / 'kills.md').write_text('\n'.join(lines) + '\n')


def _of(chain: dict[str, Any]) -> dict[str, Any]:
    return dict(cell=chain['cell'], mode=chain['mode'])


def _stages(kills: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> list[str]:
    """A row for each cell: kills by the stage that they came in."""
    counts = Counter((kill['cell'], kill['stage']) for kill in kills)
    rows = ['| kills in | ' + ' | '.join(STAGES) + ' |', '|---' * (1 + len(STAGES)) + '|']
    for cell in cells:
        numbers = ' | '.join(str(counts[cell.name, stage]) for stage in STAGES)
        rows.append(f'| {cell.name} | {numbers} |')
    return rows


def _training(kills: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> list[str]:
    """Kills in training by the mode of injection, and how many combinations have enough."""
    counts = Counter((k['cell'], k['mode']) for k in kills if k['stage'] == 'training')
    rows = ['| in training, by mode | ' + ' | '.join(MODES) + ' |', '|---' * (1 + len(MODES)) + '|']
    for cell in cells:
        numbers = ' | '.join(str(counts[cell.name, mode]) for mode in MODES)
        rows.append(f'| {cell.name} | {numbers} |')
    stages = Counter((kill['cell'], kill['stage']) for kill in kills)
    each = [counts[cell.name, mode] for cell in cells for mode in MODES]
    each += [stages[c.name, s] for c in cells for s in STAGES if s not in ('start', 'training')]
    enough = sum(number >= QUOTA for number in each)
    verdict = (
        f'Of {len(each)} combinations of cell and stage, training in each mode counted by itself, '
        f'{enough} have {QUOTA} kills or more; the fewest are {min(each)}.'
    )
    return [*rows, '', verdict]


def _resumes(kills: Sequence[dict[str, Any]]) -> list[str]:
    """Seconds until new work, by the stage that was killed."""
    rows = [
        'Seconds from the start of a resume to new work, imports left out (they are done before '
        'the fork):',
        '',
        '| killed in | resumes | median | worst |',
        '|---|---|---|---|',
    ]
    for stage in STAGES:
        taken = [
            kill['resume']
            for kill in kills
            if kill['stage'] == stage and kill['resume'] is not None
        ]
        if taken:
            rows.append(
                f'| {stage} | {len(taken)} | {statistics.median(taken):.2f} | {max(taken):.2f} |'
            )
    return rows
