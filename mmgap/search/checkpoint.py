# SPDX-License-Identifier: Apache-2.0
"""The search's own small checkpoint: one safetensors file, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmgap.files import write_bytes

PLAIN = ('losses', 'attacks', 'hits', 'total', 'restarts', 'done')


def save_search(
    path: str | Path, key: str, states: list[Any], optimizer: Any, schedulers: list[Any]
) -> None:
    """Save prompts, optimiser and schedulers, whole or not at all.

    Args:
        path: The file.
        key: Names prompts, settings, generator and target that the search belongs to.
        states: One :class:`~mmgap.search.state.SearchState` per prompt.
        optimizer: MMEngine's optimiser wrapper.
        schedulers: MMEngine's parameter schedulers.
    """
    tensors: dict[str, Tensor] = {}
    about: list[dict[str, Any]] = []
    for i, state in enumerate(states):
        tensors[f'embeddings/{i}'] = state.prompt.embeddings.detach()
        tensors[f'initial/{i}'] = state.initial
        for step, embeddings in state.snapshots.items():
            tensors[f'snapshot/{i}/{step}'] = embeddings
        about.append({name: getattr(state, name) for name in PLAIN})
    plain: dict[str, dict[str, Any]] = {}
    kept = optimizer.optimizer.state_dict()
    for i, values in kept['state'].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f'optimizer/{i}/{name}'] = value
            else:
                plain.setdefault(str(i), {})[name] = value
    meta = dict(
        key=key,
        states=about,
        param_groups=kept['param_groups'],
        plain=plain,
        schedulers=[_plain(scheduler.state_dict()) for scheduler in schedulers],
    )
    tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, save(tensors, metadata={'search': json.dumps(meta)}))


def load_search(
    path: str | Path, key: str, states: list[Any], optimizer: Any, schedulers: list[Any]
) -> bool:
    """Put a saved search back in place.

    Returns:
        False, with nothing changed, if there is no file, it cannot be read, or it belongs to
        another search.
    """
    if not Path(path).is_file():
        return False
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads(file.metadata()['search'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, TypeError, KeyError, ValueError):  # truncated, or not a search's
        return False
    if not isinstance(meta, dict) or meta.get('key') != key:
        return False
    if any(set(about) != set(PLAIN) for about in meta['states']):  # of another version of mmgap
        return False
    for i, (state, about) in enumerate(zip(states, meta['states'], strict=True)):
        state.prompt.embeddings.data.copy_(tensors[f'embeddings/{i}'])
        state.initial = tensors[f'initial/{i}'].to(state.initial)
        state.snapshots = {
            int(name.rpartition('/')[2]): value.to(state.initial)
            for name, value in tensors.items()
            if name.startswith(f'snapshot/{i}/')
        }
        state.snapshots = dict(sorted(state.snapshots.items()))
        for name in PLAIN:
            setattr(state, name, about[name])
    kept: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in meta['plain'].items()}
    for name, value in tensors.items():
        if name.startswith('optimizer/'):
            _, i, entry = name.split('/', 2)
            kept.setdefault(int(i), {})[entry] = value
    optimizer.optimizer.load_state_dict(dict(state=kept, param_groups=meta['param_groups']))
    for scheduler, state in zip(schedulers, meta['schedulers'], strict=True):
        scheduler.load_state_dict(state)
    return True


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """What of a scheduler's state is plain data; the rest is built again from its config."""
    kinds = (int, float, str, bool, list, tuple, dict, type(None))
    return {name: value for name, value in state.items() if isinstance(value, kinds)}
