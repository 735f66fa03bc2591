# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's pool holds for a budget, and what that cost."""

from __future__ import annotations

import json
from pathlib import Path

from mmgap.manifest import Sample
from mmgap.pool import SamplePool


def counts_of(pool: Path, images: int) -> tuple[int, int]:
    """Images kept and not kept until so many are kept, or all where they never are."""
    samples, share = _first(pool, images)
    kept = sum(sample.kept for sample in samples)
    return round(share * kept), round(share * (len(samples) - kept))


def evaluations_of(pool: Path, images: int) -> float | None:
    """Network evaluations that the first so many kept images cost, with search and aim.

    None for real images, and for pools of older versions, which did not count.
    """
    about = json.loads((pool / 'about.json').read_text())
    if about.get('search_evaluations') is None:
        return None
    aims = [json.loads(file.read_text()) for file in sorted(pool.glob('aim_*.json'))]
    samples, share = _first(pool, images)
    drawn = share * sum(sample.evaluations or 0 for sample in samples)
    total = about['search_evaluations'] + sum(aim['evaluations'] for aim in aims) + drawn
    return round(total, 6)


def _first(pool: Path, images: int) -> tuple[list[Sample], float]:
    """The samples that so many kept ones come from, and the part of them that counts."""
    samples = SamplePool(pool).samples
    kept = [i for i, sample in enumerate(samples) if sample.kept]
    if len(kept) <= images:
        return samples, 1.0
    if any(sample.useful_by for sample in samples):  # chosen from whole blocks
        return samples, images / len(kept)
    return samples[: kept[images - 1] + 1] if images else [], 1.0
