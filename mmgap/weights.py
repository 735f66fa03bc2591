# SPDX-License-Identifier: Apache-2.0
"""Weights without pickle: ``mmgap://NAME`` is a file or folder inside the package, and
``mmgap://PATH.safetensors`` any safetensors file, which MMEngine cannot read by itself.

Importing this module teaches MMEngine's ``CheckpointLoader`` the prefix, so that
``init_cfg=dict(type='Pretrained', checkpoint='mmgap://toybirds-resnet18')`` works.
"""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.runner.checkpoint import CheckpointLoader
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
    if stem.endswith('.safetensors'):
        if not Path(stem).is_file():
            raise FileNotFoundError(f'{name!r}: there is no file {stem}')
        return stem
    for path in (FOLDER / stem, FOLDER / f'{stem}.safetensors'):
        if stem and path.exists():
            return str(path)
    known = sorted(PREFIX + p.stem for p in FOLDER.glob('*') if p.is_dir() or p.suffix != '.json')
    raise FileNotFoundError(f'{name!r} names no packaged weights; there are {known}')


@CheckpointLoader.register_scheme(prefixes=PREFIX, force=True)
def load_from_mmgap(filename: str, map_location: str | None = None) -> dict[str, torch.Tensor]:
    """Load safetensors weights as a float32 state dict."""
    state = load_file(resolve(filename), device=str(map_location or 'cpu'))
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
