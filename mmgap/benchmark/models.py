# SPDX-License-Identifier: Apache-2.0
"""Other targets for a config: those of its ``zoo``, and those of MMPretrain's list."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from mmgap.weights import resolve


def with_model(config: Config, name: str) -> Config:
    """The config with another target.

    Args:
        config: The config; not changed.
        name: An entry of its ``zoo``, or a model of MMPretrain's list.

    Raises:
        ValueError: If it is neither, or the entry names a setting that cannot be reached.
    """
    config = copy.deepcopy(config)
    zoo = config.pop('zoo', None) or {}
    changes = zoo[name] if name in zoo else listed_model(name, config, zoo)
    for key, value in changes.items():
        parent: Any = config
        *names, last = key.split('.')
        for step in names:
            parent = parent.get(step) if isinstance(parent, (Config, dict)) else None
        if not isinstance(parent, (Config, dict)):
            raise ValueError(f'zoo[{name!r}] changes {key!r}, which the config does not have')
        parent[last] = copy.deepcopy(value)
    return config


def listed_model(name: str, config: Config, zoo: Mapping[str, Any]) -> dict[str, Any]:
    """A model of MMPretrain's list with its published weights, as an entry of a zoo.

    Args:
        name: Its name there.
        config: The config whose model it replaces: it gets as many classes. What
            ``benchmark.train`` changes in the model holds for the config's own and is left out.
        zoo: For messages.

    Raises:
        ValueError: If there is no classifier of this name, or it has no weights.
    """
    from mmpretrain.apis.model import ModelHub, list_models

    if name not in list_models(task='Image Classification'):
        near = list_models(f'*{name}*', task='Image Classification')[:8]
        raise ValueError(
            f'{name!r} is neither in the zoo of the config ({list(zoo)}) nor a classifier of '
            f'MMPretrain; there are {near or "none like it"}'
        )
    meta = ModelHub._models_dict[name.lower()]
    if not meta.weights:
        raise ValueError(f'MMPretrain has no weights of {name!r} to start from')
    listed = Config.fromfile(meta.config, lazy_import=False)
    model = copy.deepcopy(listed.model)
    model.pop('train_cfg', None)  # Mixup and the like
    model.setdefault('data_preprocessor', copy.deepcopy(listed.get('data_preprocessor')))
    num_classes = config.model.head.num_classes
    model.data_preprocessor.update(num_classes=num_classes)
    model.head.update(num_classes=num_classes, topk=(1,))
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=meta.weights, prefix='backbone.')
    changes = dict(model=model)
    train = (config.get('benchmark') or {}).get('train') or {}
    if train:
        kept = {key: value for key, value in train.items() if key.split('.')[0] != 'model'}
        changes['benchmark.train'] = kept
    return changes


def check_weights(name: str, config: Config) -> None:
    """See before the hours begin that a target's pretrained weights are there.

    Raises:
        FileNotFoundError: If they are to be in a file, and are not, or cannot be fetched.
    """
    backbone = config.model.get('backbone', {})
    while 'init_cfg' not in backbone and isinstance(backbone.get('backbone'), Mapping):
        backbone = backbone['backbone']
    init = backbone.get('init_cfg')
    weights = init.get('checkpoint') or '' if isinstance(init, Mapping) else ''
    try:
        path = resolve(weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{name}: {error}; pretrain it with tools/toyworld/train_backbone.py --zoo in a '
            'checkout of mmgap, or name another checkpoint in its init_cfg'
        ) from error
    if '://' in path:
        try:
            CheckpointLoader.load_checkpoint(path, map_location='cpu')
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{name}: {error}. A model in the config's `zoo` has an init_cfg of its own, also "
                "timm's from Hugging Face (timm://NAME)"
            ) from error
    elif path.endswith('.pth') and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f'{name}: there is no {path}, which its init_cfg names')
