# SPDX-License-Identifier: Apache-2.0
"""Packaged weights: ``mmgap://NAME`` means a file or folder inside the package.

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
    """Turn ``mmgap://NAME`` into a path inside the package; other strings come back unchanged.

    Raises:
        FileNotFoundError: When no packaged weights have that name; lists those there are.
    """
    if not name.startswith(PREFIX):
        return name
    stem = name[len(PREFIX) :]
    for path in (FOLDER / stem, FOLDER / f'{stem}.safetensors'):
        if stem and path.exists():
            return str(path)
    known = sorted(PREFIX + p.stem for p in FOLDER.glob('*') if p.is_dir() or p.suffix != '.json')
    raise FileNotFoundError(f'{name!r} names no packaged weights; there are {known}')


@CheckpointLoader.register_scheme(prefixes=PREFIX, force=True)
def load_from_mmgap(filename: str, map_location: str | None = None) -> dict[str, torch.Tensor]:
    """Load packaged safetensors weights as a float32 state dict."""
    state = load_file(resolve(filename), device=str(map_location or 'cpu'))
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
