# SPDX-License-Identifier: Apache-2.0
"""Models of configs as targets."""

from __future__ import annotations

import copy
import os
import re
import zipfile
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_to_model
from torch import Tensor, nn

from mmgap.compat import allow_checkpoint_history, name_pretrained
from mmgap.targets.classifier import TargetModel
from mmgap.targets.depth import DepthTarget
from mmgap.typed import checked

# What PyTorch says of a class or function in a pickle that it does not load as weights.
REFUSED = re.compile(r"GLOBAL (\S+) was not|but got <class '([^']+)'>")


def load_model(config: Config, checkpoint: str | None = None) -> nn.Module:
    """The model of a config, on MMEngine's device.

    Args:
        config: Of MMPretrain or MMSegmentation; its scope must be the default one.
        checkpoint: Weights; None for those that the config's ``init_cfg`` names.

    Raises:
        RuntimeError: If the checkpoint does not fit the model.
        ValueError: If it cannot be read.
    """
    settings = copy.deepcopy(config.model)
    name_pretrained(settings)
    if config.get('data_preprocessor') is not None:  # as the Runner does
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(settings)
    if checkpoint is None:
        model.init_weights()
    else:
        try:
            _load_checkpoint_to_model(model, read_checkpoint(checkpoint), strict=True)
        except RuntimeError as error:
            if re.search('missing keys|size mismatch', str(error)):
                raise RuntimeError(
                    f'checkpoint {checkpoint} does not fit the {type(model).__name__} of the '
                    f'config: {error}'
                ) from error
            # It has all and more, as of an auxiliary head that the config leaves out.
            MMLogger.get_current_instance().warning(f'checkpoint {checkpoint}: {error}')
    return model.to(get_device())


def read_checkpoint(path: str) -> dict[str, Any]:
    """What is in a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read; it never runs code.
    """
    allow_checkpoint_history()
    try:
        checkpoint = _load_checkpoint(path, map_location='cpu')
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f'checkpoint {path} cannot be read: {_fault(path, error)}') from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    if not any(isinstance(value, Tensor) for value in state.values()):
        what = [*checkpoint] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"checkpoint {path} has no weights where MMEngine looks for them, under 'state_dict' "
            f'or without any name; it holds {what}. Save them as dict(state_dict=…)'
        )
    return checkpoint


def _fault(path: str, error: Exception) -> str:
    """Why a checkpoint cannot be read, and what to do."""
    if path.endswith('.safetensors'):
        return f'MMEngine reads no safetensors by itself; write mmgap://{path}'
    if not isinstance(error, UnpicklingError):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f'{reason}; it is truncated, or none of PyTorch'
    found = REFUSED.search(str(error))
    if found is None:
        return 'it is truncated, or none of PyTorch'
    return (
        f'it holds {found[1] or found[2]}, which might run code when it is loaded. If you trust '
        'the file, keep its weights alone: torch.load(…, weights_only=False), then '
        'torch.save(dict(state_dict=…), …)'
    )


def check_readable(path: str) -> None:
    """See that a checkpoint is whole, without reading it where its kind makes that possible.

    Raises:
        ValueError: If it is not.
    """
    # Zip files have their directory at the end; those of PyTorch before 1.6 are none.
    if os.path.isfile(path) and not zipfile.is_zipfile(path):
        read_checkpoint(path)


def fitting_share(module: nn.Module, settings: Mapping[str, Any]) -> float:
    """Share of a module's tensors that a checkpoint has in the same shape.

    Args:
        module: The module.
        settings: Its ``checkpoint`` and, for a part of one, the ``prefix``.

    Raises:
        ValueError: If the checkpoint cannot be read.
    """
    state = read_checkpoint(settings['checkpoint'])
    state = state.get('state_dict', state)
    prefix = settings.get('prefix')
    if prefix is None:  # as MMEngine loads weights that were saved in DistributedDataParallel
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    else:
        prefix = f'{prefix.rstrip(".")}.'
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k not in own or own[k].shape == v.shape}
    # Loaded into a copy, since some backbones rename what they are given.
    missing = copy.deepcopy(module).load_state_dict(state, strict=False).missing_keys
    counted = [name for name in own if not name.endswith('num_batches_tracked')]
    return 1 - len(set(missing) & set(counted)) / max(1, len(counted))


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
        input: Arguments of :class:`TargetModel` that hold instead of what the pipeline says.
        label_type: ``'classes'`` or ``'depth'``.

    Raises:
        ValueError: If neither says them.
    """
    kind = DepthTarget if label_type == 'depth' else TargetModel
    given = checked(kind, input or {}, model)
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(name) or {}).get('dataset')
        while isinstance(dataset, Mapping) and 'pipeline' not in dataset:
            dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
        if dataset is not None:
            return kind.from_pipeline(model, dataset['pipeline'], **given)
    if 'input_size' in given:
        return kind(model, **given)
    raise ValueError(
        'the config has no test or val pipeline to read the input size from; give '
        'input=dict(input_size=(height, width))'
    )
