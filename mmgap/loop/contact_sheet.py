# SPDX-License-Identifier: Apache-2.0
"""One picture per round: sources beside generated images, and each prompt along its search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmgap.files import write_image
from mmgap.generators import DiffusionGenerator
from mmgap.loop.report import effect
from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.search import FoundPrompt
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sheet import draw_sheet
from mmgap.sources import Sources


def write_contact_sheet(
    path: str | Path,
    pool: SamplePool,
    sources: Sources,
    generator: DiffusionGenerator,
    found: Sequence[FoundPrompt],
    num_inference_steps: int,
    round: int,
    batch_size: int = 8,
    pairs: int = 16,
    most: int = 32,
) -> None:
    """Draw and write the picture of a round.

    Args:
        path: PNG file.
        pool: Pool with the round's samples.
        sources: Sources that they were drawn around.
        generator: Draws the search's way.
        found: The round's prompts with their snapshots.
        num_inference_steps: Denoising steps of the search's images.
        round: Number of the round.
        batch_size: Images drawn at a time.
        pairs: Number of source and generated pairs.
        most: The first so many prompts that were searched for are shown along their search.
    """
    samples = [sample for sample in pool.samples if sample.round == round]
    # At random: even steps would keep meeting the same few prompts.
    order = derive_rng('contact sheet', round).permutation(len(samples))
    chosen = [samples[i] for i in sorted(order[:pairs])]
    indices = [sample.source_index for sample in chosen]
    shown = list(sources.load(indices).images) if chosen else []
    rows = []
    for start in range(0, len(chosen), 8):
        part = range(start, min(start + 8, len(chosen)))
        rows.append(('sources', [shown[i].permute(1, 2, 0).numpy() for i in part], [''] * 8))
        made = [np.array(Image.open(pool.path(chosen[i]))) for i in part]
        notes = [sources.classes[chosen[i].label] for i in part]
        rows.append(('generated', made, notes))
    searched = [result for result in found if result.steps]
    for result in searched[:most]:
        images = _along_the_search(generator, sources, result, num_inference_steps, batch_size)
        title = f'{result.prompt.id}: {effect(result.summary(sources.classes))}'
        rows.append((title, images, ['source'] + [f'step {step}' for step in result.snapshots]))
    write_image(path, draw_sheet(rows))


@torch.no_grad()
def _along_the_search(
    generator: DiffusionGenerator,
    sources: Sources,
    result: FoundPrompt,
    num_inference_steps: int,
    batch_size: int,
) -> list[np.ndarray]:
    found = result.prompt
    prompts = [
        SoftPrompt(
            embeddings,
            'snapshot',
            template=found.template,
            joiner=found.joiner,
            widths=found.widths,
        )
        for embeddings in result.snapshots.values()
    ]
    source = int(sources.of_class(result.prompt.label)[0])
    seed = derive_seed('contact sheet', result.prompt.id)
    shown = [sources.load([source]).images[0].permute(1, 2, 0).numpy()]
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        condition, embeds = sources.load([source] * len(part)), generator.prompts.encode(part)
        images = generator(condition, embeds, [seed] * len(part), num_inference_steps)
        shown += [*(images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]
    return shown
