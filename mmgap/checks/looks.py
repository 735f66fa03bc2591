# SPDX-License-Identifier: Apache-2.0
"""What ``mmgap check`` looks at: the data, its masks or depth maps, the model and its weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import load_checkpoint
from torch import nn

from mmgap.configs import check_one_steers, injection_hooks
from mmgap.datasets import SyntheticDataset, SyntheticMixDataset
from mmgap.datasets.masked_folders import left_out_note
from mmgap.datasets.synthetic_mix import mixes_in
from mmgap.injection import InjectionSettings, check_refit, rate_note
from mmgap.injection import check_classes as check_refit_classes
from mmgap.loop import Loop
from mmgap.loop.guards import check_classes
from mmgap.pool import SamplePool
from mmgap.targets.load import fitting_share, load_model
from mmgap.weights import is_pretrained
from mmgap.wrappers import innermost

LOOKED_AT = 16  # masks or depth maps
MOST_KEPT = 0.75  # median share of the image that most objects stay below


def count(settings: Mapping[str, Any], needs_all: bool) -> tuple[Any, str]:
    """The dataset of a config, and how many samples of each group or class it has.

    Raises:
        ValueError: If an image does not exist, or ``needs_all`` and a class has none.
    """
    dataset = DATASETS.build(settings)
    return dataset, counted(dataset, needs_all)


def counted(dataset: Any, needs_all: bool = False) -> str:
    """How many samples of each group or class a dataset has; as for :func:`count`."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    missing = [info['img_path'] for info in infos[:: max(1, len(infos) // 50)] if is_gone(info)]
    if missing:
        raise ValueError(f'image {missing[0]} does not exist; look at data_root and data_prefix')
    classes, groups = dataset.metainfo.get('classes'), dataset.metainfo.get('groups')
    labels = Counter(info.get('gt_label') for info in infos)
    empty = [name for number, name in enumerate(classes or ()) if not labels[number]]
    if needs_all and empty and None not in labels:
        raise ValueError(f'there are no images of class {", ".join(empty)}')
    counts, names = Counter(info.get('group') for info in infos), groups
    if not groups or None in counts:
        counts, names = labels, classes
    detail = f'{len(infos)} samples'
    if names and None not in counts:
        each = (f'{name} {counts[number]}' for number, name in enumerate(names))
        detail += f': {", ".join(each)}'
    others = [name for part in innermost(dataset) for name in getattr(part, 'left_out', ())]
    return f'{detail}. NOTE: {left_out_note(others)}' if others else detail


def compare_splits(sources: Any, others: Mapping[str, Any]) -> tuple[Any, str]:
    """See that labels mean the same in all splits, and whether a source is evaluated on.

    Raises:
        ValueError: If the classes differ.
    """
    check_classes(sources, [dataset for dataset in others.values() if dataset is not None])
    own = [sources.dataset.get_data_info(i)['img_path'] for i in range(len(sources))]
    detail = 'no source is among the others'
    for name, dataset in others.items():
        if dataset is not None:
            paths = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
            if paths & set(own):
                detail = f'NOTE: {len(paths & set(own))} sources are also {name} data'
    return sources, detail


def is_gone(info: Mapping[str, Any]) -> bool:
    return '://' not in info['img_path'] and not os.path.exists(info['img_path'])


def look_at_sources(sources: Any) -> tuple[Any, str]:
    """Read a few masks or depth maps."""
    step = max(1, len(sources) // LOOKED_AT)
    condition = sources.load(list(range(0, len(sources), step))[:LOOKED_AT])
    if condition.depth is not None:
        known = condition.depth[condition.depth > 0]
        share = condition.masks.float().mean()
        return sources, (
            f'depth of {len(condition)} sources from {known.min():.2f} to {known.max():.2f} m, '
            f'median {known.median():.2f} m, known in {share:.0%} of the pixels'
        )
    shares = condition.masks.float().mean(dim=(1, 2, 3))
    detail = (
        f'masks of {len(condition)} sources keep {shares.min():.0%} to {shares.max():.0%} of the '
        f'image, median {shares.median():.0%}'
    )
    masked = shares[shares < 1]  # without a mask all of it is kept
    if len(masked) and masked.median() > MOST_KEPT:
        detail += (
            '. NOTE: that is much. Are they inverted? The object must be bright, all else dark'
        )
    return sources, detail


def load_start(config: Config, start: str) -> nn.Module:
    """The model as training begins with it: ``load_from`` may be of another head.

    Raises:
        ValueError: If it has no weight of the model.
    """
    model = load_model(config)
    if not fitting_share(model, dict(checkpoint=start)):
        raise ValueError(f'load_from={start!r} has no weight of the model: it is of another one')
    load_checkpoint(model, start, map_location='cpu')
    return model


def load_target(loop: Loop, checkpoint: str | None) -> tuple[Any, str]:
    """The model with its weights, as a target; as for :func:`load_weights`."""
    model, detail = load_weights(loop.config, checkpoint)
    return loop.target(model=model), detail


def load_weights(config: Config, checkpoint: str | None) -> tuple[nn.Module, str]:
    """The model with its weights: of a checkpoint, or those that training begins with.

    Raises:
        ValueError: If pretrained weights are of another architecture.
    """
    start = None if checkpoint else config.get('load_from')
    model = load_start(config, start) if start else load_model(config, checkpoint)
    loaded = [f'weights from {checkpoint or start}'] if checkpoint or start else []
    for name, module in model.named_modules():
        settings: Any = None if checkpoint or start else getattr(module, 'init_cfg', None)
        if not is_pretrained(settings):
            continue
        share = fitting_share(module, settings)
        # MMEngine only warns where weights do not fit, and trains on from a random start.
        if share < 0.9:
            raise ValueError(
                f'only {share:.0%} of the weights of {name or "the model"} are in '
                f'{settings["checkpoint"]!r}: they are of another architecture'
            )
        loaded.append(f'{name or "model"} {share:.0%} from {settings["checkpoint"]}')
    number = sum(p.numel() for p in model.parameters()) / 1e6
    kind = type(model).__name__
    return model, f'{kind}, {number:.1f} M parameters; {", ".join(loaded) or "no weights loaded"}'


def look_at_refit(
    model: nn.Module, injection: InjectionSettings, label_type: str
) -> tuple[None, str]:
    """See that the model can be refitted; as for :func:`mmgap.injection.check_refit`."""
    check_refit(model, injection, label_type)
    settings = injection.for_labels(label_type)
    layers = 'the last layer' if settings.layers == 'last' else 'all layers'
    return None, f'{settings.steps} steps of {layers}'


def look_at_schedule(
    config: Config, injection: InjectionSettings, label_type: str, model: nn.Module
) -> tuple[None, str]:
    """Whether the learning rate falls before images come, where a refit needs that."""
    if config.get('param_scheduler'):
        return None, 'the learning rate has a schedule'
    note = rate_note(model, injection, label_type, rate=1.0)
    detail = 'the learning rate is constant'
    return None, detail if note is None else f'{detail}. NOTE: {note}'


def look_at_injection(config: Config) -> tuple[Any, str]:
    """How a pool that there is already enters training.

    Raises:
        ValueError: If there are several hooks for that.
    """
    found = injection_hooks(config)
    check_one_steers(['InjectionHook' for _ in found])
    if not found:
        plain = dict(type='mmgap.InjectionHook', injection=dict(mode='mix'))
        return HOOKS.build(plain), 'by a SyntheticMixDataset without a hook'
    hook = HOOKS.build(found[0])
    return hook, f'mode {hook.injection.mode!r}'


def look_at_pool(data: Any, hook: Any) -> tuple[SyntheticDataset, str]:
    """The images that training will take of a pool, with the pipeline of the training data.

    Raises:
        FileNotFoundError: If the pool has too few.
        ValueError: If it is damaged, does not fit the data, or lacks a class that a refit needs.
    """
    mix = next(iter(mixes_in(data)), None) or SyntheticMixDataset(data)
    pool = hook.pool or mix.pool
    if pool is None:
        raise ValueError('no pool is named: give InjectionHook or SyntheticMixDataset its folder')
    mix.budget = hook.budget or mix.budget
    mix.refresh(pool)
    images = mix.generated
    if hook.injection.mode == 'refit':
        check_refit_classes(images, hook.injection)
    images[0]  # goes through the pipeline
    whole = SamplePool(pool)
    dropped = len(whole) - len(whole.kept)
    detail = f'{pool}: {counted(images)}'
    return images, f'{detail}, and {dropped} that the critic dropped' if dropped else detail


def one_test_sample(config: Config, model: Any) -> tuple[None, str]:
    """Send a test sample through the model and the metrics, as at the end of training."""
    loader = config.test_dataloader
    dataset = DATASETS.build(loader.dataset)
    settings = config.test_evaluator
    if isinstance(settings, Mapping):
        settings = settings.get('metrics', [settings])
    evaluator = Evaluator(settings)
    evaluator.dataset_meta = dataset.metainfo
    batch = pseudo_collate([dataset[0]])
    model.eval()
    with torch.no_grad():
        outputs = model.test_step(batch)
    model.train()
    evaluator.process(data_samples=outputs, data_batch=batch)
    return None, f'went through {names_of(evaluator.metrics)}'


def names_of(parts: Sequence[Any]) -> str:
    return ', '.join(type(part).__name__ for part in parts if part is not None) or 'none'
