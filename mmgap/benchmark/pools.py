# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's pool holds for a budget, and what that cost."""

from __future__ import annotations

import json
from pathlib import Path

from mmgap.pool import Sample, SamplePool


def counts_of(pool: Path, images: int) -> tuple[int, int]:
    """Images kept and dropped until so many are kept, or all where they never are."""
    samples = _first(pool, images)
    kept = sum(sample.kept for sample in samples)
    return kept, len(samples) - kept


def evaluations_of(pool: Path, images: int) -> float | None:
    """Network evaluations that the first so many kept images cost, with search and aim.

    None for real images, and for pools of older versions, which did not count.
    """
    about = json.loads((pool / 'about.json').read_text())
    if about.get('search_evaluations') is None:
        return None
    aims = [json.loads(file.read_text()) for file in sorted(pool.glob('aim_*.json'))]
    drawn = [sample.evaluations or 0 for sample in _first(pool, images)]
    total = about['search_evaluations'] + sum(aim['evaluations'] for aim in aims) + sum(drawn)
    return round(total, 6)


def _first(pool: Path, images: int) -> list[Sample]:
    """All samples up to the last of so many kept ones."""
    first: list[Sample] = []
    kept = 0
    for sample in SamplePool(pool).samples:
        if kept == images:
            break
        kept += sample.kept
        first.append(sample)
    return first
