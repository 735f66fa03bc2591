# SPDX-License-Identifier: Apache-2.0
"""The images of a benchmark's methods: real ones, or prompts that are found and drawn."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.registry import DATASETS, TASK_UTILS

from mmgap.feedback import Critic
from mmgap.hooks.components import (
    Components,
    build_critic,
    build_search,
    build_synthesizer,
    split_search,
)
from mmgap.pool import SamplePool
from mmgap.prompts import PromptBank, SoftPrompt
from mmgap.sources import SourceSet

if TYPE_CHECKING:
    from mmgap.benchmark.cells import Benchmark


def put_real(benchmark: Benchmark, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Put real images into a pool, in their own order.

    Raises:
        ValueError: If there are too few, or the benchmark evaluates on them.
    """
    settings = dict(benchmark.methods[method].dataset)
    if 'type' not in settings:
        settings = {**benchmark.config.test_dataloader.dataset, **settings}
    dataset = DATASETS.build(copy.deepcopy(settings))
    _check_leak(method, dataset, benchmark.evaluation())
    generator, pool = benchmark.parts(seed).generator, SamplePool(folder)
    depth = benchmark.parts(seed).sources.label_type == 'depth'
    # They are stored as they are, so nothing need be known of what to keep.
    sources = generator.sources(dataset) if depth else SourceSet(dataset, generator.size, False)
    number = max(benchmark.budgets)
    if len(sources) < number:
        raise ValueError(
            f'the dataset of {method!r} has {len(sources)} images, {number} are asked for'
        )
    for index in range(len(pool), number):
        condition = sources.load([index])
        pool.append(
            condition.images[0].permute(1, 2, 0).numpy(),
            sources.stored_depth(condition, 0),
            depth_unit=sources.unit,
            label=int(condition.labels[0]),
            group=sources.groups[index],
            source_index=index,
            source_group=sources.groups[index],
            seed=0,
            prompt_id='real',
            generator='real',
            num_inference_steps=0,
            target_loss_source=None,
            target_loss_image=None,
            feedback=None,
            round=0,
        )
    return {}


def _check_leak(method: str, dataset: Any, evaluation: Sequence[Any]) -> None:
    own = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
    for other in evaluation:
        for i in range(len(other)):
            if other.get_data_info(i)['img_path'] in own:
                raise ValueError(
                    f'method {method!r} would train on images that the benchmark evaluates on, '
                    f'among them {other.get_data_info(i)["img_path"]}'
                )


def generate(benchmark: Benchmark, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Draw a method's images, round by round, and judge its prompts on held-out sources."""
    parts, fragment = benchmark.parts(seed, method), benchmark.methods[method]
    base = parts.target(str(benchmark.base(seed)))
    settings = dict(parts.hook.synthesis_cfg, **fragment.get('synthesis', {}))
    critic = _critic(benchmark, method, parts)
    pool, rounds = SamplePool(folder), fragment.get('rounds', 1)
    prompts, searched = [], 0.0
    for number in range(rounds):
        began = time.time()
        target = base if number == 0 else _trained(benchmark, method, seed, pool, number)
        found = _prompts(benchmark, method, seed, parts, target, number)
        searched += time.time() - began
        fixed = (parts.generator, parts.sources, settings, seed)
        synthesizer = build_synthesizer(*fixed, number, critic=critic)
        # Whole batches: then the pool of a small budget is the beginning of a larger one's.
        batches = -(-max(benchmark.budgets) // (rounds * synthesizer.batch_size))
        count = batches * synthesizer.batch_size
        synthesizer.run(found, count, pool, target, parts.feedback, number)
        prompts += found
    given = (parts, base, _hook_search(parts), parts.feedback, critic)
    search, initial = _search(*given, draw=False)
    if len(prompts) != len(initial):
        raise ValueError(
            f'method {method!r} has {len(prompts)} prompts, the hook {len(initial)}; all methods '
            'must have as many'
        )
    judged = [search.evaluate(prompt) for prompt in prompts]
    return dict(
        prompts=[prompt.id for prompt in prompts],
        judged=judged,
        held_out={name: float(np.mean([j[name] for j in judged])) for name in judged[0]},
        pool_target_loss=float(np.mean([s.target_loss_image for s in pool.samples])),
        search_seconds=searched,
    )


def _trained(benchmark: Benchmark, method: str, seed: int, pool: SamplePool, number: int) -> Any:
    """The model that a later round searches against: trained on with the images so far."""
    path = benchmark.folder('rounds', method, seed) / f'{number}.pth'
    kept = sum(sample.kept for sample in pool.samples if sample.round < number)
    if not path.exists():
        config = benchmark.training(method, seed, 'all', pool.folder, kept)
        benchmark.run(config, keep=path, test=False)
    return benchmark.parts(seed, method).target(str(path))


def _hook_search(parts: Components) -> dict[str, Any]:
    return {**parts.hook.initial_cfg, **parts.hook.search_cfg}


def _prompts(
    benchmark: Benchmark, method: str, seed: int, parts: Components, target: Any, number: int
) -> list[SoftPrompt]:
    """The prompts of a round; those that are found come first."""
    fragment = benchmark.methods[method]
    if 'prompts_of' in fragment:
        return _prompts(benchmark, fragment['prompts_of'], seed, parts, target, number)
    settings = _hook_search(parts)
    settings.update(fragment.get('search', fragment.get('initial', {})))
    critic = _critic(benchmark, method, parts)
    found: list[SoftPrompt] = []
    if 'initial' in fragment:
        found = _search(parts, target, settings, parts.feedback, critic, number)[1]
    if 'search' in fragment:
        feedback = parts.feedback
        if 'feedback' in fragment:
            feedback = [TASK_UTILS.build(dict(term)) for term in fragment.feedback]
            parts.prepare(feedback, benchmark.out / 'features' / str(seed), benchmark.evaluation())
        search, found = _search(parts, target, settings, feedback, critic, number)
        bank = PromptBank(benchmark.folder('prompts', method, seed))
        # Goes on from its checkpoint, which knows whether it is still the same search.
        checkpoint = benchmark.folder('search', method, seed) / f'{number}.safetensors'
        search.run(found, checkpoint, bank)
    texts = benchmark.texts(method)
    if not texts:
        return found
    missing = settings.get('prompts_per_class', 4) * len(parts.sources.classes) - len(found)
    return found + [
        parts.generator.prompts.text_prompt(texts[i % len(texts)], f'{method}-{i}')
        for i in range(missing)
    ]


def _critic(benchmark: Benchmark, method: str, parts: Components) -> Critic | None:
    settings = benchmark.methods[method].get('critic', parts.hook.critic_cfg)
    return build_critic(settings, parts.generator, parts.sources.classes)


def _search(
    parts: Components,
    target: Any,
    settings: Mapping[str, Any],
    feedback: Sequence[Any],
    critic: Critic | None,
    number: int = 0,
    draw: bool = True,
) -> tuple[Any, list[SoftPrompt]]:
    fixed = (parts.generator, target, feedback, parts.sources)
    settings = split_search(settings)
    return build_search(*fixed, *settings, parts.seed, number, critic=critic, draw=draw)
