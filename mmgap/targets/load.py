# SPDX-License-Identifier: Apache-2.0
"""Models of configs as targets."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from mmgap.compat import allow_checkpoint_history, name_pretrained
from mmgap.targets.classifier import TargetModel
from mmgap.targets.depth import DepthTarget


def load_model(config: Config, checkpoint: str | None = None) -> nn.Module:
    """The model of a config, on MMEngine's device.

    Args:
        config: Of MMPretrain or MMSegmentation; its scope must be the default one.
        checkpoint: Weights; None for those that the config's ``init_cfg`` names.

    Raises:
        RuntimeError: If the checkpoint does not fit the model.
    """
    settings = copy.deepcopy(config.model)
    name_pretrained(settings)
    if config.get('data_preprocessor') is not None:  # as the Runner does
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(settings)
    if checkpoint is None:
        model.init_weights()
    else:
        allow_checkpoint_history()
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    return model.to(get_device())


def build_target(
    model: nn.Module,
    config: Mapping[str, Any],
    input: Mapping[str, Any] | None = None,
    label_type: str = 'classes',
) -> TargetModel:
    """A model, seen from the image.

    Args:
        model: A classifier of MMPretrain or a depth model of MMSegmentation.
        config: Its config, whose test or val pipeline says size and channel order.
        input: Arguments of :class:`TargetModel` that say them instead.
        label_type: ``'classes'`` or ``'depth'``.

    Raises:
        ValueError: If neither says them.
    """
    kind = DepthTarget if label_type == 'depth' else TargetModel
    if input is not None:
        return kind(model, **input)
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(name) or {}).get('dataset')
        while isinstance(dataset, Mapping) and 'pipeline' not in dataset:
            dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
        if dataset is not None:
            return kind.from_pipeline(model, dataset['pipeline'])
    raise ValueError(
        'the config has no test or val pipeline to read the input size from; give '
        'input=dict(input_size=(height, width))'
    )
