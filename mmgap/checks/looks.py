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
from mmengine.registry import DATASETS
from mmengine.runner import load_checkpoint
from torch import nn

from mmgap.datasets.masked_folders import left_out_note
from mmgap.injection import rate_note
from mmgap.loop import Loop
from mmgap.loop.guards import check_classes
from mmgap.targets import TargetModel
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
        counted = (f'{name} {counts[number]}' for number, name in enumerate(names))
        detail += f': {", ".join(counted)}'
    others = [name for part in innermost(dataset) for name in getattr(part, 'left_out', ())]
    return dataset, f'{detail}. NOTE: {left_out_note(others)}' if others else detail


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
    """The model with its weights.

    Raises:
        ValueError: If pretrained weights are of another architecture.
    """
    start, model = None if checkpoint else loop.config.get('load_from'), None
    if start:
        model = load_start(loop.config, start)
    target = loop.target(checkpoint, model)
    loaded = [f'weights from {checkpoint or start}'] if checkpoint or start else []
    for name, module in target.model.named_modules():
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
    number = sum(p.numel() for p in target.model.parameters()) / 1e6
    kind = type(target.model).__name__
    return target, f'{kind}, {number:.1f} M parameters; {", ".join(loaded) or "no weights loaded"}'


def look_at_schedule(config: Config, loop: Loop, target: TargetModel) -> tuple[None, str]:
    """Whether the learning rate falls before images come, where a refit needs that."""
    if config.get('param_scheduler'):
        return None, 'the learning rate has a schedule'
    note = rate_note(target.model, loop.settings.injection, loop.sources.label_type, rate=1.0)
    detail = 'the learning rate is constant'
    return None, detail if note is None else f'{detail}. NOTE: {note}'


def one_test_sample(config: Config, target: Any) -> tuple[None, str]:
    """Send a test sample through the model and the metrics, which the hook asks before a round."""
    loader = config.test_dataloader
    dataset = DATASETS.build(loader.dataset)
    settings = config.test_evaluator
    if isinstance(settings, Mapping):
        settings = settings.get('metrics', [settings])
    evaluator = Evaluator(settings)
    evaluator.dataset_meta = dataset.metainfo
    batch = pseudo_collate([dataset[0]])
    with torch.no_grad(), target.frozen():
        outputs = target.model.test_step(batch)
    evaluator.process(data_samples=outputs, data_batch=batch)
    return None, f'went through {names_of(evaluator.metrics)}'


def names_of(parts: Sequence[Any]) -> str:
    return ', '.join(type(part).__name__ for part in parts if part is not None) or 'none'
