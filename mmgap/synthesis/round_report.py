# SPDX-License-Identifier: Apache-2.0
"""What a round's images are like, for the summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmgap.feedback import ClipCritic, Critic, diversity
from mmgap.pool import SamplePool


def round_report(
    pool: SamplePool, round: int, critic: Critic | None = None, limit: int = 200
) -> dict[str, Any]:
    """Counts and, where a critic can tell, agreement and diversity of a round.

    Args:
        pool: The pool.
        round: Number of the round.
        critic: The critic that looked at the images.
        limit: The diversity is that of the first so many kept images.

    Returns:
        ``images`` (kept), ``dropped``, ``agreement`` (mean over all drawn, None without a critic)
        and ``diversity`` (mean cosine distance of two images in CLIP's space, None without CLIP).
    """
    drawn = [sample for sample in pool.samples if sample.round == round]
    kept = [sample for sample in drawn if sample.kept]
    told = [sample.agreement for sample in drawn if sample.agreement is not None]
    spread = None
    if isinstance(critic, ClipCritic) and len(kept) > 1:
        arrays = [np.array(Image.open(pool.path(sample))) for sample in kept[:limit]]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        spread = diversity(critic.model, images)
    return dict(
        images=len(kept),
        dropped=len(drawn) - len(kept),
        agreement=float(np.mean(told)) if told else None,
        diversity=spread,
    )
