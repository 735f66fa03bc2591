# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: the package itself (``mmgap://NAME``), a folder, or the hub.

``mmgap://PATH.safetensors`` is any safetensors file, which MMEngine cannot read by itself.

Importing this module teaches MMEngine's ``CheckpointLoader`` the prefix, so that
``init_cfg=dict(type='Pretrained', checkpoint='mmgap://toybirds-resnet18')`` works.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load_file

PREFIX = 'mmgap://'
FOLDER = Path(__file__).parent / 'toyworld' / 'weights'


def resolve(name: str) -> str:
    """Turn ``mmgap://…`` into a path; other strings come back unchanged.

    Raises:
        FileNotFoundError: When no packaged weights have that name; lists those there are. Or when
            there is no such file.
    """
    if not name.startswith(PREFIX):
        return name
    stem = name[len(PREFIX) :]
    for path in (FOLDER / stem, FOLDER / f'{stem}.safetensors'):
        if stem and path.exists():
            return str(path)
    if stem.endswith('.safetensors'):
        if not Path(stem).is_file():
            raise FileNotFoundError(f'{name!r}: there is no file {stem}')
        return stem
    known = sorted(PREFIX + p.stem for p in FOLDER.glob('*') if p.is_dir() or p.suffix != '.json')
    raise FileNotFoundError(f'{name!r} names no packaged weights; there are {known}')


def load_pretrained(
    load: Callable[..., Any], model: str, kind: str, library: str, index: str, **settings: Any
) -> Any:
    """Load a model of diffusers or transformers.

    Args:
        load: A ``from_pretrained``.
        model: Folder, hub id or ``mmgap://NAME``.
        kind: What it must be, for messages: "an inpainting pipeline".
        library: Whose ``load`` it is, for messages.
        index: Name of the file that every folder of such a model has.
        **settings: For ``load``.

    Raises:
        FileNotFoundError: If ``model`` is neither a complete folder nor a hub id that can be
            loaded.
        ValueError: If what is there is not of this library, not of this kind, or would run code.
    """
    path = resolve(model)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, index)):
            files = sorted(name for name in os.listdir(path) if name.endswith('.safetensors'))
            raise ValueError(
                f'model={model!r} has no {index}: it is no {library} model'
                + (f'. It holds {files}: for a model in one file give that file' if files else '')
            )
    elif os.path.isfile(path) or os.path.isabs(path) or path.count('/') != 1:
        raise FileNotFoundError(f'model={model!r} is neither a folder nor a hub id (OWNER/NAME)')
    variant = settings.get('variant')
    if variant is not None and os.path.isdir(path) and not _has_variant(path, variant):
        raise FileNotFoundError(f'model={model!r} has no weights of variant={variant!r}')
    try:
        return load(path, **settings)
    except (OSError, SafetensorError, UnpicklingError) as error:
        if _in_pickle(error):
            raise ValueError(
                f'model={model!r} has a pickle (.bin) that is damaged or would run code, which is '
                f'not done; take its .safetensors: {error}'
            ) from error
        raise FileNotFoundError(
            f'model={model!r} is neither a complete {library} folder nor a hub id that can be '
            f'loaded: {error}{variants_in(path, settings.get("variant"))}'
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'model={model!r} is not {kind}: {error}') from error


def _in_pickle(error: BaseException | None) -> bool:
    """Whether an error comes from a file that PyTorch would not read as weights alone."""
    while error is not None:
        if isinstance(error, UnpicklingError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_variant(path: str, variant: str) -> bool:
    return any(p.suffix in ('.safetensors', '.bin') for p in Path(path).rglob(f'*.{variant}*.*'))


def variants_in(path: str, variant: str | None) -> str:
    """What to say of the variants in a folder where another one was asked for; '' if nothing."""
    names = [p.stem for p in Path(path).rglob('*.*.safetensors')] if os.path.isdir(path) else []
    found = sorted({re.sub(r'-\d+-of-\d+$', '', name.partition('.')[2]) for name in names})
    if not found or variant in found:
        return ''
    return f'. Its weights are of variant {found}: set variant={found[0]!r}'


@CheckpointLoader.register_scheme(prefixes=PREFIX, force=True)
def load_from_mmgap(filename: str, map_location: str | None = None) -> dict[str, torch.Tensor]:
    """Load safetensors weights as a float32 state dict."""
    state = load_file(resolve(filename), device=str(map_location or 'cpu'))
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
