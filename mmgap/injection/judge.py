# SPDX-License-Identifier: Apache-2.0
"""How a model sees generated images, and the mode of injection that goes with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.distributed import broadcast_object, raise_on_all_ranks
from mmgap.injection.batches import label_type_of, missing_classes
from mmgap.injection.probe import separability
from mmgap.injection.settings import InjectionSettings
from mmgap.seeds import derive_rng, derive_seed, seeded

# Held-out accuracy of the probe from which on `auto` takes `refit`. Measured for drawn images: 0.85
# to 1.00 with three targets; for real images of another distribution: 0.61 to 0.65
# (docs/results/README.md).
SEPARABLE = 0.8
# Samples of each kind that the probe sees, and how many real ones are looked through for them.
COUNT = 200
SCANNED = 20_000


def judge_images(
    model: nn.Module,
    images: SyntheticDataset,
    real: Any,
    settings: InjectionSettings,
    pipeline: Compose | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Probe how well a model tells generated images from real ones, and choose the mode.

    Real samples are drawn with the classes that the images have, each once.

    Args:
        model: A classifier or depth model of the toolboxes, without its wrapper.
        images: The generated images.
        real: The real training data.
        settings: Those of the injection; ``mode='auto'`` leaves the choice to the probe.
        pipeline: What the images are read through; the training's own by default.
        seed: Of what is drawn.

    Returns:
        ``mode`` and ``why``; ``generated``, the held-out accuracy of a linear probe on the model's
        pooled features between generated and real images, and ``control``, the same between two
        draws of real images; None where there are too few, or, with a mode that does not need
        them, the model or the data cannot be probed.

    Raises:
        ValueError: If they cannot, and the mode is to be chosen by them.
    """
    found: dict[str, Any] | None = None
    with raise_on_all_ranks(ValueError):
        if dist.is_main_process():
            found = _judge(model, images, real, settings, pipeline or images.pipeline, seed)
    found = broadcast_object(found)
    MMLogger.get_current_instance().info(f'[gap] injection: {found["mode"]}. {found["why"]}')
    return found


def _judge(
    model: nn.Module,
    images: SyntheticDataset,
    real: Any,
    settings: InjectionSettings,
    pipeline: Compose,
    seed: int,
) -> dict[str, Any]:
    probes: dict[str, float | None] = dict(generated=None, control=None)
    label_type = label_type_of(images)
    generated, first, second = _draw(images, real, seed)
    if min(len(generated), len(first), len(second)) < 2:
        said = 'There are too few images to probe how the model sees them'
    else:
        try:
            fakes = pooled_features(model, images, generated, pipeline, seed)
            reals = pooled_features(model, real, first, pipeline, seed)
            others = pooled_features(model, real, second, pipeline, seed)
        except Exception as error:
            if settings.mode == 'auto' and label_type == 'classes':
                raise ValueError(
                    "injection mode='auto' needs features of the model on images read by the test "
                    f'pipeline, and there are none ({type(error).__name__}: {error}); choose a mode'
                ) from error
            said = f'How the model sees the images is not known ({type(error).__name__}: {error})'
        else:
            made, control = separability(fakes, reals, seed), separability(reals, others, seed)
            probes = dict(generated=made, control=control)
            said = (
                f'On its features a linear probe tells generated from real images with accuracy '
                f'{made:.2f}, and two draws of real ones with {control:.2f}'
            )
    if settings.mode != 'auto':
        return dict(mode=settings.mode, why=f'{said}.', **probes)
    if label_type == 'depth':
        return dict(mode='mix', why=f'{said}. For depth no refit was better than a mix.', **probes)
    missing = missing_classes(images)
    if missing and settings.layers == 'last' and settings.for_labels(label_type).reset:
        why = f'{said}. No images of {len(missing)} classes, which a refit would forget'
        return dict(mode='mix', why=f'{why}.', **probes)
    apart = probes['generated'] is not None and probes['generated'] >= SEPARABLE
    side = 'at or above' if apart else 'below'
    why = (
        f'{said}: {side} {SEPARABLE}, from which on a mix teaches the one kind more than the other'
    )
    return dict(mode='refit' if apart else 'mix', why=f'{why}.', **probes)


def _draw(images: Any, real: Any, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Some images, and two draws of real samples with as many of each class, none twice."""
    rng = derive_rng(seed, 'probe')
    generated = [int(i) for i in rng.permutation(len(images))[:COUNT]]
    labels = Counter(str(images.get_data_info(i).get('gt_label')) for i in generated)
    wanted = [dict(labels), dict(labels)]
    draws: tuple[list[int], list[int]] = ([], [])
    seen = set()
    for i in rng.permutation(len(real))[:SCANNED]:
        info = real.get_data_info(int(i))
        label, name = str(info.get('gt_label')), str(info.get('img_path', i))
        if name in seen:
            continue
        seen.add(name)
        # In turn, so that both have some of a class of few.
        for which in sorted((0, 1), key=lambda which: -wanted[which].get(label, 0)):
            if wanted[which].get(label, 0):
                wanted[which][label] -= 1
                draws[which].append(int(i))
                break
        if len(draws[0]) == len(draws[1]) == len(generated):
            break
    return generated, *draws


@torch.no_grad()
def pooled_features(
    model: nn.Module,
    dataset: Any,
    indices: Sequence[int],
    pipeline: Compose,
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Pooled features of some samples of a dataset, in eval mode.

    Args:
        model: A model with ``extract_feat``.
        dataset: With ``get_data_info``.
        indices: Which of its samples.
        pipeline: What they are read through.
        seed: Of a pipeline that draws.
        batch_size: Images at a time; those of another size than the one before begin a new batch.

    Returns:
        ``(N, C)`` float32.
    """
    network: Any = model
    modes = [(module, module.training) for module in model.modules()]
    parts = []
    try:
        model.eval()
        batch: list[dict[str, Any]] = []
        for place, i in enumerate(indices):
            with seeded(derive_seed(seed, 'probe', int(i))):
                batch.append(pipeline(dataset.get_data_info(int(i))))
            ready = batch
            if batch[-1]['inputs'].shape != batch[0]['inputs'].shape:
                ready, batch = batch[:-1], batch[-1:]
            elif len(batch) < batch_size and place + 1 < len(indices):
                continue
            else:
                batch = []
            parts.append(_features(network, ready))
        if batch:
            parts.append(_features(network, batch))
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(parts)


def _features(network: Any, batch: list[dict[str, Any]]) -> np.ndarray:
    data = network.data_preprocessor(pseudo_collate(batch), False)
    return _pooled(network.extract_feat(data['inputs'])).float().cpu().numpy()


def _pooled(features: Any) -> Tensor:
    """``(B, C)`` of the last of a network's features, maps and tokens averaged."""
    while isinstance(features, (list, tuple)):
        features = features[-1]
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features
