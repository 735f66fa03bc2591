# SPDX-License-Identifier: Apache-2.0
"""From a method to its pool: real images, or images drawn with prompts that it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import MMLogger

from mmgap.benchmark.methods import Method
from mmgap.loop import GAPSettings, Loop
from mmgap.loop.guards import same_path
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.sources import Sources
from mmgap.targets import TargetModel
from mmgap.typed import change_settings


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the search of a method keeps its files.

    Attributes:
        prompts: The prompts that are found.
        search: A checkpoint for each round.
        features: Features of guidance images, which all methods of a seed share.
    """

    prompts: Path
    search: Path
    features: Path


def put_real(
    pool: SamplePool, sources: Sources, *, method: str, count: int, evaluation: Sequence[Any]
) -> None:
    """Put the first real images of a dataset into a pool, in its order.

    Args:
        pool: The pool; what it already has stays.
        sources: The real images at the size of the generator.
        method: Name of the method, for messages.
        count: How many images the pool shall have.
        evaluation: Datasets that the benchmark evaluates on.

    Raises:
        ValueError: If the dataset has too few images, or one that the benchmark evaluates on.
    """
    _check_leak(method, sources.dataset, evaluation)
    if len(sources) < count:
        raise ValueError(
            f'the dataset of {method!r} has {len(sources)} images, {count} are asked for'
        )
    for index in range(len(pool), count):
        condition = sources.load([index])
        pool.append_real(
            condition.images[0].permute(1, 2, 0).numpy(),
            sources.stored_depth(condition, 0),
            label=int(condition.labels[0]),
            group=sources.groups[index],
            source_index=index,
            depth_unit=sources.unit,
        )


def _check_leak(method: str, dataset: Any, evaluation: Sequence[Any]) -> None:
    own = {same_path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))}
    for other in evaluation:
        for i in range(len(other)):
            if same_path(other.get_data_info(i)['img_path']) in own:
                raise ValueError(
                    f'method {method!r} would train on images that the benchmark evaluates on, '
                    f'among them {other.get_data_info(i)["img_path"]}'
                )


def draw_images(
    pool: SamplePool,
    method: Method,
    loop: Loop,
    *,
    count: int,
    checkpoint: Callable[[int], Path],
    folders: Folders,
    evaluation: Sequence[Any],
    evaluate_prompts: bool = True,
) -> dict[str, Any]:
    """Draw a method's images, round by round, and evaluate its prompts on held-out sources.

    Args:
        pool: Where the images go.
        method: The method.
        loop: The hook's loop, with the method's own generator.
        count: How many images, at least.
        checkpoint: A function of the round: weights of the target model that the round searches
            against. Those of the first round are the base checkpoint.
        folders: Where the search keeps its files.
        evaluation: Datasets that the benchmark evaluates on: no guidance image may be in them.
        evaluate_prompts: Whether prompts are evaluated, which for small budgets takes longer than
            to draw the images.

    Returns:
        What ``about.json`` says of the pool.

    Raises:
        ValueError: If there are fewer images than prompts: some would not be drawn.
    """
    base = loop.target(str(checkpoint(0)))
    drawing = loop.variant(
        critic=method.choose_critic(loop.settings.critic),
        synthesis=change_settings(loop.settings.synthesis, method.synthesis or {}, 'synthesis'),
    )
    drawing.prepare()  # what is the same is loaded once
    finding = _finding(method.finder, drawing, loop.settings, folders, evaluation)
    # Whole batches: then the pool of a small budget is the beginning of a larger one's.
    size = drawing.settings.synthesis.batch_size
    per_round = size * -(-count // (method.rounds * size))
    prompts, seconds = [], 0.0
    evaluations: float | None = 0.0
    for round_index in range(method.rounds):
        began = time.monotonic()
        target = base if round_index == 0 else loop.target(str(checkpoint(round_index)))
        of_round, cost = _find_prompts(
            method.finder,
            finding,
            target,
            round_index,
            folders,
            loop.settings.search.prompts_per_class * len(loop.sources.classes),
        )
        evaluations = None if cost is None or evaluations is None else evaluations + cost
        seconds += time.monotonic() - began
        if per_round < len(of_round):
            raise ValueError(
                f'method {method.name!r} has {len(of_round)} prompts for {per_round} images; lower '
                'its prompts_per_class, or raise --budgets'
            )
        drawing.synthesize(of_round, per_round, pool, target, round_index)
        prompts += of_round
    losses = [sample.target_loss_image for sample in pool.kept]
    about = dict(
        prompts=[prompt.id for prompt in prompts],
        pool_target_loss=float(np.mean([loss for loss in losses if loss is not None])),
        search_seconds=seconds,
        search_evaluations=evaluations,
    )
    if evaluate_prompts and loop.settings.search.holdout:
        search = drawing.prompt_search(base)
        scores = [search.evaluate(prompt) for prompt in prompts]
        means = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
        about.update(judged=scores, held_out=means)
    return about


def _finding(
    method: Method,
    loop: Loop,
    hook: GAPSettings,
    folders: Folders,
    evaluation: Sequence[Any],
) -> Loop:
    """The loop that finds a method's prompts: the hook's settings with its changes."""
    changes = method.initial if method.search is None else method.search
    search = change_settings(hook.search, changes or {}, 'search')
    critic = method.choose_critic(hook.critic)
    if method.search is None or method.feedback is None:
        return loop.variant(search=search, critic=critic)
    return loop.variant(
        search=search,
        critic=critic,
        feedback=list(method.feedback),
        evaluation=evaluation,
        features=folders.features,
    )


def _find_prompts(
    method: Method,
    loop: Loop,
    target: TargetModel,
    round_index: int,
    folders: Folders,
    count: int,
) -> tuple[list[SoftPrompt], float | None]:
    """The prompts of a round, and the network evaluations that they cost, if those were counted.

    Those that are searched for or drawn come before sentences.
    """
    prompts: list[SoftPrompt] = []
    counter = loop.generator.evaluations
    cost: float | None = 0.0
    if method.search is not None:
        # Goes on from its checkpoint, which knows whether it is still the same search.
        path = folders.search / f'{round_index}.safetensors'
        found = loop.search(target, round_index, path, PromptBank(folders.prompts))
        prompts = [result.prompt for result in found]
        costs = [one.evaluations for one in found if one.evaluations is not None]
        cost = sum(costs) if len(costs) == len(found) else None
    elif method.initial is not None:
        before = counter.counts()
        prompts = loop.initial_prompts(loop.prompt_search(target, round_index), round_index)
        cost = counter.total(counter.since(before))
    texts = method.sentences()
    if not texts:
        return prompts, cost
    room = count - len(prompts)
    if len(texts) > room:
        MMLogger.get_current_instance().warning(
            f'[gap] method {method.name!r} draws the first {room} of its {len(texts)} texts: '
            f'prompts are {count} (search.prompts_per_class times the classes)'
        )
    sentences = [
        loop.generator.prompts.text_prompt(texts[i % len(texts)], f'{method.name}-{i}')
        for i in range(room)
    ]
    return prompts + sentences, cost
