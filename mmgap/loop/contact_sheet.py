# SPDX-License-Identifier: Apache-2.0
"""Pictures of a round: sources beside generated images, and each prompt along its search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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

ROW = 8  # pairs side by side
SMALL = 192  # pixels; width of an image that is looked at in a browser

SheetRow = tuple[str, list[np.ndarray], list[str]]


@dataclass
class RoundPictures:
    """The images that stand for a round, ``(H, W, 3)`` uint8 each, all of one size.

    Attributes:
        sources: Some of the sources.
        generated: What was drawn around each.
        files: The file of each in the pool.
        classes: The class of each.
        development: By prompt, a source and then what is drawn around it along the search.
        titles: By prompt, what its search has changed.
        steps: By prompt, the steps that its images but the first are of.
    """

    sources: list[np.ndarray] = field(default_factory=list)
    generated: list[np.ndarray] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    development: dict[str, list[np.ndarray]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)

    def rows(self) -> list[SheetRow]:
        """All of it as rows of a sheet."""
        rows: list[SheetRow] = []
        for start in range(0, len(self.generated), ROW):
            part = slice(start, start + ROW)
            rows.append(('sources', self.sources[part], [''] * ROW))
            rows.append(('generated', self.generated[part], self.classes[part]))
        return rows + [self.row(id) for id in self.development]

    def row(self, id: str) -> SheetRow:
        """The development of a prompt as a row of a sheet."""
        notes = ['source', *(f'step {step}' for step in self.steps[id])]
        return f'{id}: {self.titles[id]}', self.development[id], notes

    def pairs(self) -> list[dict[str, str]]:
        """Of each pair its ``file`` in the pool and its ``class``."""
        named = zip(self.files, self.classes, strict=True)
        return [{'file': file, 'class': name} for file, name in named]

    def smaller(self, width: int = SMALL) -> RoundPictures:
        """The same with images that are no wider than ``width``."""
        return RoundPictures(
            _shrunk(self.sources, width),
            _shrunk(self.generated, width),
            self.files,
            self.classes,
            {id: _shrunk(images, width) for id, images in self.development.items()},
            self.titles,
            self.steps,
        )

    def save(self, folder: Path) -> None:
        """Write strips of images without words, for pages that have words of their own.

        Args:
            folder: Gets ``pairs.png``, sources above generated images, and ``ID.png`` of each
                prompt: images side by side, all as wide as high times their own ratio.
        """
        if self.generated:
            rows = [np.concatenate(images, axis=1) for images in (self.sources, self.generated)]
            write_image(folder / 'pairs.png', Image.fromarray(np.concatenate(rows)))
        for id, images in self.development.items():
            write_image(folder / f'{id}.png', Image.fromarray(np.concatenate(images, axis=1)))


def picture_round(
    pool: SamplePool,
    sources: Sources,
    generator: DiffusionGenerator,
    found: Sequence[FoundPrompt],
    num_inference_steps: int,
    round: int,
    batch_size: int = 8,
    pairs: int = 16,
    most: int = 32,
) -> RoundPictures:
    """Choose and draw the pictures of a round.

    Args:
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
    pictures = RoundPictures()
    samples = [sample for sample in pool.samples if sample.round == round]
    # At random: even steps would keep meeting the same few prompts.
    order = derive_rng('contact sheet', round).permutation(len(samples))
    chosen = [samples[i] for i in sorted(order[:pairs])]
    if chosen:
        loaded = sources.load([sample.source_index for sample in chosen]).images
        pictures.sources = [image.permute(1, 2, 0).numpy() for image in loaded]
    pictures.generated = [np.array(Image.open(pool.path(sample))) for sample in chosen]
    pictures.files = [sample.file for sample in chosen]
    pictures.classes = [sources.classes[sample.label] for sample in chosen]
    searched = [result for result in found if result.steps]
    for result in searched[:most]:
        id = result.prompt.id
        images = _along_the_search(generator, sources, result, num_inference_steps, batch_size)
        pictures.development[id] = images
        pictures.titles[id] = effect(result.summary(sources.classes))
        pictures.steps[id] = list(result.snapshots)
    return pictures


def write_contact_sheet(path: str | Path, pictures: RoundPictures) -> None:
    """Write the pictures of a round as one.

    Args:
        path: PNG file.
        pictures: Those of the round.
    """
    write_image(path, draw_sheet(pictures.rows()))


def _shrunk(images: Sequence[np.ndarray], width: int) -> list[np.ndarray]:
    made = []
    for image in images:
        if image.shape[1] > width:
            size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        made.append(image)
    return made


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
