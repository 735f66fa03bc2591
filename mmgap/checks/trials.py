# SPDX-License-Identifier: Apache-2.0
"""What ``mmgap check`` tries out: steps of the search and images, with their time and memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from mmgap.loop import Loop
from mmgap.machine import memory, peak, reset_peak
from mmgap.search.progress import PromptProgress
from mmgap.search.step import SearchStep
from mmgap.sources import ImageSpec
from mmgap.targets import TargetModel

MOST_SECONDS = 60  # that a whole step may take to be looked at


def set_up(loop: Loop, target: Any) -> tuple[Any, str]:
    """The search and the prompts that it starts from."""
    search = loop.prompt_search(target)
    loop.initial_prompts(search, draw=False)
    return search, 'can be set up'


def one_step(loop: Loop, target: Any, tiny: bool) -> tuple[None, str]:
    """A step of the search with one image and with two, and what follows from them, if it searches.

    Raises:
        ValueError: If the batch of the config would not fit into memory.
    """
    settings = loop.settings.search
    if not settings.steps:
        return None, 'none: search.steps=0 draws prompts without a search'
    prompts = settings.prompts_per_class * len(loop.sources.classes)
    images_per_step = settings.images_per_prompt * prompts
    for term in loop.feedback:
        term.start, term.end = 0, None  # some begin late; all together take the most
    measured = [measure(loop, target, images) for images in (1, 1, 2)]
    (_, first), (seconds, _), (two, second) = measured
    each = min(seconds, two / 2)
    if tiny:
        return None, 'one image went through generator, model and back; tiny weights tell no times'
    batch = min(settings.batch_size, images_per_step)
    free, needed = memory(), first + max(0, second - first) * (batch - 1)
    if second and needed > free:
        fits = max(1, int((free - first) / max(1, second - first)) + 1)
        raise ValueError(
            f'a step with search.batch_size={batch} would take about {needed / 2**30:.1f} GiB, and '
            f'there are {free / 2**30:.1f} GiB; set search.batch_size={min(fits, batch - 1) or 1}, '
            "or gradient=dict(checkpoint='blocks') in the generator"
        )
    if each * batch < MOST_SECONDS:  # together they take less time each, on a GPU above all
        taken, needed = measure(loop, target, batch)
        each = taken / batch
    rounds = duration(each * settings.steps * images_per_step)
    last = f'a round of {prompts} prompts takes at most {rounds} to search'
    if not second:
        return None, f'{each:.2f} s an image; {last}. This system does not tell the memory it takes'
    return None, (
        f'{each:.2f} s an image and about {needed / 2**30:.1f} GiB with search.batch_size={batch} '
        f'(of {free / 2**30:.1f} GiB); {last}'
    )


def measure(loop: Loop, target: Any, images: int) -> tuple[float, int]:
    """Seconds and peak bytes of a step with so many images; 0 bytes where nothing tells them.

    Each image has a prompt of its own, as in the worst case.
    """
    step = SearchStep(
        loop.generator,
        target,
        loop.feedback,
        loop.sources,
        loop.settings.search.num_inference_steps,
        batch_size=images,
    )
    random_prompt = loop.generator.prompts.random_prompt
    prompts = [random_prompt(4, seed=i, id=f'check-{i}') for i in range(images)]
    progress = [PromptProgress(prompt, prompt.embeddings.detach().clone()) for prompt in prompts]
    reset_peak()
    began = time.monotonic()
    with target.frozen():
        scores = step(progress, [ImageSpec(i % len(loop.sources), i, i) for i in range(images)])
    if not all(score.gradient.abs().sum() > 0 for score in scores):
        raise ValueError('no gradient reaches the prompt; look at the terms of feedback')
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began, peak()


def duration(seconds: float) -> str:
    return f'{seconds / 3600:.1f} h' if seconds > 5400 else f'{seconds / 60:.1f} min'


def one_image(loop: Loop, target: TargetModel | None, tiny: bool) -> tuple[None, str]:
    """Draw an image as the synthesis does, and a batch of them to see what they take.

    Raises:
        FloatingPointError: If it has pixels that are NaN.
    """
    settings, generator = loop.settings.synthesis, loop.generator
    synthesizer, drawn = loop.synthesizer(), loop.settings.budget * settings.overdraw
    prompt = generator.prompts.random_prompt(4, seed=0, id='check')
    feedback = loop.feedback if target is not None else ()
    each = 0.0
    for images in (1, 1, min(settings.batch_size, drawn)):  # the first one warms up
        if each * images > MOST_SECONDS:
            break
        began = time.monotonic()
        synthesizer.try_out([prompt], target, feedback, images)
        each = (time.monotonic() - began) / images
    size = f'{generator.size[1]}x{generator.size[0]}'
    if tiny:
        return None, size
    kept = f', of which {loop.settings.budget} are kept,' * (settings.overdraw > 1)
    return None, f'{size} in {each:.2f} s; {drawn} images{kept} take {duration(each * drawn)}'
