# SPDX-License-Identifier: Apache-2.0
"""How a model sees generated images, and the mode of injection that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.distributed import broadcast_object
from mmgap.injection.probe import separability
from mmgap.injection.refit import missing_classes
from mmgap.injection.settings import InjectionSettings
from mmgap.seeds import derive_rng, derive_seed, seeded

# Held-out accuracy of the probe from which on `auto` takes `refit`. Measured: see
# docs/results/injection.
SEPARABLE = 0.8
# Samples of each kind that the probe sees.
COUNT = 200


def judge_images(
    model: nn.Module,
    images: SyntheticDataset,
    real: Any,
    settings: InjectionSettings,
    pipeline: Compose | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Probe how well a model tells generated images from real ones, and choose the mode.

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
        draws of real images; None where there are too few.
    """
    found: dict[str, Any] | None = None
    if dist.is_main_process():
        found = _judge(model, images, real, settings, pipeline, seed)
    found = broadcast_object(found)
    MMLogger.get_current_instance().info(f'[gap] injection: {found["mode"]}. {found["why"]}')
    return found


def _judge(
    model: nn.Module,
    images: SyntheticDataset,
    real: Any,
    settings: InjectionSettings,
    pipeline: Compose | None,
    seed: int,
) -> dict[str, Any]:
    rng = derive_rng(seed, 'probe')
    generated = rng.permutation(len(images))[:COUNT]
    drawn = rng.permutation(len(real))[: 2 * COUNT]
    first, second = drawn[::2], drawn[1::2]
    if min(len(generated), len(first), len(second)) < 2:
        probes: dict[str, float | None] = dict(generated=None, control=None)
        said = 'There are too few images to probe how the model sees them'
    else:
        reader = pipeline or images.pipeline
        fakes, reals, others = (
            pooled_features(model, data, indices, reader, seed)
            for data, indices in ((images, generated), (real, first), (real, second))
        )
        made, control = separability(fakes, reals, seed), separability(reals, others, seed)
        probes = dict(generated=made, control=control)
        said = (
            f'On its features a linear probe tells generated from real images with accuracy '
            f'{made:.2f}, and two draws of real ones with {control:.2f}'
        )
    if settings.mode != 'auto':
        return dict(mode=settings.mode, why=f'{said}.', **probes)
    missing = missing_classes(images)
    if missing and settings.layers == 'last' and settings.reset:
        why = f'{said}. No images of {len(missing)} classes, which a refit would forget'
        return dict(mode='mix', why=f'{why}.', **probes)
    apart = probes['generated'] is not None and probes['generated'] >= SEPARABLE
    side = 'at or above' if apart else 'below'
    why = (
        f'{said}: {side} {SEPARABLE}, from which on a mix teaches the one kind more than the other'
    )
    return dict(mode='refit' if apart else 'mix', why=f'{why}.', **probes)


@torch.no_grad()
def pooled_features(
    model: nn.Module,
    dataset: Any,
    indices: Any,
    pipeline: Compose,
    seed: int = 0,
    batch_size: int = 50,
) -> np.ndarray:
    """Pooled features of some samples of a dataset, in eval mode.

    Args:
        model: A model with ``extract_feat``.
        dataset: With ``get_data_info``.
        indices: Which of its samples.
        pipeline: What they are read through.
        seed: Of a pipeline that draws.
        batch_size: Images at a time.

    Returns:
        ``(N, C)`` float32.
    """
    network: Any = model
    modes = [(module, module.training) for module in model.modules()]
    parts = []
    try:
        model.eval()
        for start in range(0, len(indices), batch_size):
            batch = []
            for i in indices[start : start + batch_size]:
                with seeded(derive_seed(seed, 'probe', int(i))):
                    batch.append(pipeline(dataset.get_data_info(int(i))))
            data = network.data_preprocessor(pseudo_collate(batch), False)
            parts.append(_pooled(network.extract_feat(data['inputs'])).float().cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(parts)


def _pooled(features: Any) -> Tensor:
    """``(B, C)`` of the last of a network's features, maps and tokens averaged."""
    while isinstance(features, (list, tuple)):
        features = features[-1]
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features
