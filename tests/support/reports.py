# SPDX-License-Identifier: Apache-2.0
"""Work directories as runs leave them, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmgap.files import write_image, write_json
from mmgap.loop.contact_sheet import RoundPictures
from mmgap.loop.report import group_report
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.search.checkpoint import RunningSearch, save_search
from mmgap.search.progress import FoundPrompt, PromptProgress
from mmgap.sheet import draw_sheet
from tests.support.pools import ABOUT, picture

CLASSES = ('landbird', 'waterbird')
STEPS = [0, 1, 2]


def accuracies(worst: float) -> dict[str, Any]:
    """A group report of four groups."""
    groups = dict(zip(('ll', 'lw', 'wl', 'ww'), (0.98, 0.5, worst, 1.0), strict=True))
    named = {f'group/{name}': value for name, value in groups.items()}
    return group_report(dict(worst_group=worst, mean=0.62, adjusted=0.9, **named))


def fake_run(
    work_dir: Path, rounds: int = 1, classes: tuple[str, ...] = CLASSES, losses: int = 5
) -> Path:
    """A work directory with everything that a run leaves of the loop, drawn from noise."""
    gap = work_dir / 'gap'
    reports = [fake_round(gap, number, classes, losses) for number in range(rounds)]
    search = dict(steps=losses, init='<vocabulary>', alarm=None)
    feedback = [dict(type='mmgap.AdversarialLoss', mode='flip')]
    summary = dict(
        config='gap_birds.py',
        model='ImageClassifier, ResNet 18',
        settings=dict(generator=dict(type='G', size=64), feedback=feedback, search=search, start=3),
        before=accuracies(0.048),
        after=accuracies(0.744),
        rounds=reports,
        images=4 * rounds,
        injection=dict(
            mode='refit',
            why='A probe tells them apart.',
            generated=0.965,
            control=0.525,
            refit=dict(images=4, steps=20, loss=0.0816),
        ),
        stopped=None,
        rounds_missed=None,
        seconds=dict(total=125.0, evaluation=5.0, search=30.0, synthesis=40.0, training=50.0),
        seed=7,
        versions=dict(mmgap='0.1.0', torch='2.11.0'),
    )
    write_json(gap / 'summary.json', summary)
    return work_dir


def fake_round(gap: Path, number: int, classes: tuple[str, ...], losses: int) -> dict[str, Any]:
    """A round's files; what ``summary.json`` has of it."""
    pool, bank, pictures = SamplePool(gap / 'pool'), PromptBank(gap / 'prompts'), RoundPictures()
    progress, prompts = [], []
    for label in range(len(classes)):
        generator = torch.Generator().manual_seed(label)
        prompt = SoftPrompt(torch.randn(2, 4, generator=generator), f'r{number}-p{label}', label)
        values = [3.0 / (1 + step) + label for step in range(losses)]
        hits = [1.0 / (1 + step) for step in range(losses)]
        progress.append(
            PromptProgress(prompt, prompt.embeddings.detach(), values, values, hits, losses)
        )
        snapshots = {step: prompt.embeddings.detach() for step in STEPS}
        words = [[('forest', 0.91), ('bamboo', 0.5)], [('lake', 0.77), ('snow', 0.2)]]
        found = FoundPrompt(prompt, 0.1, 5.9, 1.0, 0.0, losses, 0, snapshots, words=words)
        prompts.append(dict(found.summary(classes), evaluations=791.2))
        bank.add(prompt, dict(found.summary(classes), settings=dict(steps=losses)))
        pictures.development[prompt.id] = [picture(i) for i in range(1 + len(STEPS))]
        pictures.titles[prompt.id], pictures.steps[prompt.id] = 'loss', STEPS
        for i in range(2):
            about = dict(ABOUT, label=label, prompt_id=f'{prompt.id}@ab12', round=number)
            sample = pool.append(picture(i), **dict(about, target_loss_image=2.5, kept=i == 0))
            pictures.files.append(sample.file)
            pictures.classes.append(classes[label])
            pictures.sources.append(picture(10 + i))
            pictures.generated.append(picture(i))
    save_progress(gap / 'search' / f'round_{number}.safetensors', progress)
    write_image(gap / f'round_{number}.png', draw_sheet(pictures.rows()))
    pictures.save(gap / f'round_{number}')
    return dict(
        prompts=prompts,
        pairs=pictures.pairs(),
        images=len(classes),
        dropped=len(classes),
        unselected=0,
        agreement=None,
        diversity=None,
        evaluations=84.5,
        seconds=dict(search=30.0, synthesis=40.0),
    )


def save_progress(path: Path, progress: list[PromptProgress]) -> None:
    """The checkpoint of a search that is so far."""
    prompts = nn.ModuleList(one.prompt for one in progress)
    optimizer = build_optim_wrapper(prompts, dict(optimizer=dict(type='Adam', lr=0.1)))
    identity = dict(prompts=[[one.prompt.id, one.prompt.label] for one in progress])
    save_search(path, identity, RunningSearch(progress, optimizer, []))


def noise(width: int, height: int) -> np.ndarray:
    """An image that no compression makes small."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
