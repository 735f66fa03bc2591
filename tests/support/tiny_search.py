# SPDX-License-Identifier: Apache-2.0
"""A prompt search with tiny models, also to be run and killed in a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from mmgap.feedback import AdversarialLoss
from mmgap.generators import InpaintingGenerator
from mmgap.prompts import PromptBank
from mmgap.search import PromptSearch, SearchSettings, initial_prompts
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel
from tests.support.datasets import DrawnDataset
from tests.support.tiny import tiny_classifier

SCHEDULE = [dict(type='CosineAnnealingLR', T_max=8, eta_min=1e-4, end=8)]


DEFAULTS = dict(
    prompts_per_class=1,
    tokens=[3, 2],
    steps=4,
    num_inference_steps=2,
    images_per_prompt=2,
    holdout=2,
    max_restarts=0,
)


def make(generator, sources, feedback=None, target=None, lr=0.02, seed=0, **settings):
    """A search, and the prompts that it starts from."""
    optimizer = dict(type='Adam', lr=lr)
    settings = dict(DEFAULTS, optim_wrapper=dict(optimizer=optimizer)) | settings
    search = PromptSearch(
        generator,
        target or TargetModel(tiny_classifier().to(generator.device), input_size=(16, 16)),
        feedback or [AdversarialLoss('flip')],
        sources,
        SearchSettings(**settings),
        seed,
    )
    return search, initial_prompts(generator.prompts, sources.classes, search.settings)


def run_in_a_process(folder: Path, steps_before_death: int | None) -> None:
    """One search in ``folder``; killed in the middle of a step, or run to its end."""
    torch.set_num_threads(2)
    generator = InpaintingGenerator(str(folder / 'sd'), guidance_scale=3.0)
    sources = SourceSet(DrawnDataset(folder / 'drawn'), generator.size)
    search, prompts = make(
        generator, sources, steps=6, checkpoint_interval=1, param_scheduler=SCHEDULE
    )
    step, count = search.step, []

    def counted(active):
        result = step(active)
        count.append(1)
        if len(count) == steps_before_death:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    search.step = counted
    search.run(prompts, folder / 'search.safetensors', PromptBank(folder / 'bank'))
    (folder / 'steps.txt').write_text(str(len(count)))
