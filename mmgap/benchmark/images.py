# SPDX-License-Identifier: Apache-2.0
"""From a method to its pool: real images, or images drawn with prompts that it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TASK_UTILS

from mmgap.benchmark.methods import Method
from mmgap.feedback import Critic, Feedback
from mmgap.hooks.components import (
    Components,
    build_critic,
    build_search,
    build_synthesizer,
    split_search,
)
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.search import PromptSearch
from mmgap.sources import Sources
from mmgap.targets import TargetModel


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
    own = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
    for other in evaluation:
        for i in range(len(other)):
            if other.get_data_info(i)['img_path'] in own:
                raise ValueError(
                    f'method {method!r} would train on images that the benchmark evaluates on, '
                    f'among them {other.get_data_info(i)["img_path"]}'
                )


def draw_images(
    pool: SamplePool,
    method: Method,
    parts: Components,
    *,
    count: int,
    checkpoint: Callable[[int], Path],
    folders: Folders,
    evaluation: Sequence[Any],
) -> dict[str, Any]:
    """Draw a method's images, round by round, and evaluate its prompts on held-out sources.

    Args:
        pool: Where the images go.
        method: The method.
        parts: Generator, sources and settings of the hook, with the method's own generator.
        count: How many images, at least.
        checkpoint: A function of the round: weights of the target model that the round searches
            against. Those of the first round are the base checkpoint.
        folders: Where the search keeps its files.
        evaluation: Datasets that the benchmark evaluates on: no guidance image may be in them.

    Returns:
        What ``about.json`` says of the pool.

    Raises:
        ValueError: If the method has more prompts than the hook, or fewer.
    """
    base = parts.target(str(checkpoint(0)))
    critic = _build_critic(method, parts)
    settings = {**parts.hook.synthesis_cfg, **(method.synthesis or {})}
    prompts, seconds = [], 0.0
    for number in range(method.rounds):
        began = time.time()
        target = base if number == 0 else parts.target(str(checkpoint(number)))
        of_round = _find_prompts(
            method.finder,
            parts,
            target,
            critic=critic if method.finder is method else _build_critic(method.finder, parts),
            number=number,
            folders=folders,
            evaluation=evaluation,
        )
        seconds += time.time() - began
        synthesizer = build_synthesizer(
            parts.generator, parts.sources, settings, parts.seed, number, critic=critic
        )
        # Whole batches: then the pool of a small budget is the beginning of a larger one's.
        batches = -(-count // (method.rounds * synthesizer.batch_size))
        synthesizer.run(
            of_round, batches * synthesizer.batch_size, pool, target, parts.feedback, number
        )
        prompts += of_round
    search, initial = _build_search(parts, base, parts.feedback, critic=critic, draw=False)
    if len(prompts) != len(initial):
        raise ValueError(
            f'method {method.name!r} has {len(prompts)} prompts, the hook {len(initial)}; all '
            'methods must have as many'
        )
    evaluated = [search.evaluate(prompt) for prompt in prompts]
    return dict(
        prompts=[prompt.id for prompt in prompts],
        judged=evaluated,
        held_out={
            name: float(np.mean([scores[name] for scores in evaluated])) for name in evaluated[0]
        },
        pool_target_loss=float(np.mean([sample.target_loss_image for sample in pool.samples])),
        search_seconds=seconds,
    )


def _find_prompts(
    method: Method,
    parts: Components,
    target: TargetModel,
    *,
    critic: Critic | None,
    number: int,
    folders: Folders,
    evaluation: Sequence[Any],
) -> list[SoftPrompt]:
    """The prompts of a round; those that are searched for or drawn come before sentences."""
    changes = method.initial if method.search is None else method.search
    prompts: list[SoftPrompt] = []
    if changes is not None:
        feedback: Sequence[Feedback] = parts.feedback
        if method.search is not None and method.feedback is not None:
            feedback = [TASK_UTILS.build(dict(term)) for term in method.feedback]
            parts.prepare(feedback, folders.features, evaluation)
        search, prompts = _build_search(
            parts, target, feedback, critic=critic, number=number, changes=changes
        )
        if method.search is not None:
            # Goes on from its checkpoint, which knows whether it is still the same search.
            path = folders.search / f'{number}.safetensors'
            search.run(prompts, path, PromptBank(folders.prompts))
    texts = method.sentences()
    if not texts:
        return prompts
    per_class = {**_hook_search(parts), **(changes or {})}.get('prompts_per_class', 4)
    missing = per_class * len(parts.sources.classes) - len(prompts)
    return prompts + [
        parts.generator.prompts.text_prompt(texts[i % len(texts)], f'{method.name}-{i}')
        for i in range(missing)
    ]


def _build_critic(method: Method, parts: Components) -> Critic | None:
    settings = method.choose_critic(parts.hook.critic_cfg)
    return build_critic(settings, parts.generator, parts.sources.classes)


def _hook_search(parts: Components) -> dict[str, Any]:
    return {**parts.hook.initial_cfg, **parts.hook.search_cfg}


def _build_search(
    parts: Components,
    target: TargetModel,
    feedback: Sequence[Feedback],
    *,
    critic: Critic | None,
    number: int = 0,
    changes: Mapping[str, Any] | None = None,
    draw: bool = True,
) -> tuple[PromptSearch, list[SoftPrompt]]:
    """The hook's search with changes, and the prompts that it starts from."""
    initial, settings = split_search({**_hook_search(parts), **(changes or {})})
    return build_search(
        parts.generator,
        target,
        feedback,
        parts.sources,
        initial,
        settings,
        parts.seed,
        number,
        critic=critic,
        draw=draw,
    )
