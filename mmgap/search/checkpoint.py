# SPDX-License-Identifier: Apache-2.0
"""The search's own small checkpoint: one safetensors file, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmgap.files import write_bytes
from mmgap.optimizer_state import load_optimizer_state, optimizer_state
from mmgap.search.progress import PromptProgress

# What of a search's identity may change once it is complete: how images are drawn. In the words of
# GAPHook's settings.
MAY_CHANGE = ('generator.scheduler', 'generator.eta', 'search.num_inference_steps')


@dataclass
class RunningSearch:
    """What a search changes from step to step.

    Attributes:
        progress: One entry for each prompt.
        optimizer: MMEngine's optimiser wrapper.
        schedulers: MMEngine's parameter schedulers.
        calls: Calls of the generator's networks so far, by all processes; None where nobody
            counted.
    """

    progress: list[PromptProgress]
    optimizer: OptimWrapper
    schedulers: list[Any]
    calls: dict[str, int] | None = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps so far: all prompts that have not stopped have gone through them."""
        return max((one.total for one in self.progress), default=0)

    @property
    def active(self) -> list[PromptProgress]:
        """The prompts that have not stopped."""
        return [one for one in self.progress if not one.done]


@dataclass(frozen=True)
class SearchCurve:
    """What the search of a prompt has seen step by step, as its checkpoint has it.

    Attributes: as those of :class:`~mmgap.search.progress.PromptProgress`, but the prompt's ``id``.
    """

    id: str
    losses: list[float]
    attacks: list[float]
    hits: list[float]
    total: int
    restarts: int
    done: bool


def read_curves(path: str | Path) -> list[SearchCurve]:
    """The curves of a search from its checkpoint, complete or not, whatever it was a search of.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another version of mmgap.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads(file.metadata()['search'])
        names = [prompt[0] for prompt in meta['identity']['prompts']]
        own = [field.name for field in fields(SearchCurve) if field.name != 'id']
        return [
            SearchCurve(id=id, **{name: state[name] for name in own})
            for id, state in zip(names, meta['states'], strict=True)
        ]
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f'{path} is damaged or of another version of mmgap') from error


# Fields of PromptProgress that are JSON; the others are tensors.
PLAIN = tuple(
    field.name
    for field in fields(PromptProgress)
    if field.name not in ('prompt', 'initial', 'snapshots')
)


def save_search(path: str | Path, identity: Mapping[str, Any], search: RunningSearch) -> None:
    """Save prompts, optimiser and schedulers, whole or not at all.

    Args:
        path: The file.
        identity: Plain data on prompts, settings, generator and target that the search belongs to.
        search: What is saved.
    """
    tensors: dict[str, Tensor] = {}
    states: list[dict[str, Any]] = []
    for i, progress in enumerate(search.progress):
        tensors[f'embeddings/{i}'] = progress.prompt.embeddings.detach()
        tensors[f'initial/{i}'] = progress.initial
        for step, embeddings in progress.snapshots.items():
            tensors[f'snapshot/{i}/{step}'] = embeddings
        states.append({name: getattr(progress, name) for name in PLAIN})
    own, plain = optimizer_state(search.optimizer.optimizer)
    meta = dict(
        identity=identity,
        states=states,
        calls=search.calls,
        **plain,
        schedulers=[_plain(scheduler.state_dict()) for scheduler in search.schedulers],
    )
    tensors.update(own)
    tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, save(tensors, metadata={'search': json.dumps(meta, sort_keys=True)}))


def load_search(
    path: str | Path, identity: Mapping[str, Any], search: RunningSearch
) -> dict[str, Any] | None:
    """Put a saved search back in place.

    One that is complete is taken up also where what differs is only how images are drawn
    (:data:`MAY_CHANGE`). Whatever else differs, and any file that is no search of this version, is
    said in the log.

    Returns:
        The identity that the search was saved with; None, with nothing changed, if there is no
        file, it cannot be read, or it belongs to another search.
    """
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads(file.metadata()['search'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        saved, names = meta['identity'], [set(state) for state in meta['states']]
    except (SafetensorError, TypeError, KeyError, ValueError):
        _warn(f'{path} is damaged or of another version of mmgap; the search begins anew')
        return None
    if any(own != set(PLAIN) for own in names):
        _warn(f'{path} is of another version of mmgap; the search begins anew')
        return None
    changed = differences(saved, identity)
    complete = all(state['done'] for state in meta['states'])
    if changed and not (complete and set(changed) <= set(MAY_CHANGE)):
        _warn(
            f'{path} is of another search ({", ".join(changed)} differ); the search begins anew'
            + (f' (once it is complete, {", ".join(MAY_CHANGE)} may change)' * (not complete))
        )
        return None
    if changed:
        _warn(f'the search was complete: its prompts are kept, with other {", ".join(changed)}')
    for i, (progress, state) in enumerate(zip(search.progress, meta['states'], strict=True)):
        progress.prompt.embeddings.data.copy_(tensors[f'embeddings/{i}'])
        progress.initial = tensors[f'initial/{i}'].to(progress.initial)
        snapshots = {
            int(name.rpartition('/')[2]): value.to(progress.initial)
            for name, value in tensors.items()
            if name.startswith(f'snapshot/{i}/')
        }
        progress.snapshots = dict(sorted(snapshots.items()))
        for name in PLAIN:
            setattr(progress, name, state[name])
    search.calls = meta.get('calls')  # nobody counted in older versions
    load_optimizer_state(search.optimizer.optimizer, tensors, meta)
    for scheduler, state in zip(search.schedulers, meta['schedulers'], strict=True):
        scheduler.load_state_dict(state)
    return saved


def differences(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, as dotted names of two parts at most, in order."""
    found = []
    for name in sorted({*saved, *identity}):
        before, now = saved.get(name), identity.get(name)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            keys = sorted({*before, *now})
            found += [f'{name}.{key}' for key in keys if before.get(key) != now.get(key)]
        else:
            found.append(name)
    return found


def _warn(message: str) -> None:
    MMLogger.get_current_instance().warning(f'[gap] {message}')


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """What of a scheduler's state is plain data; the rest is built again from its config."""
    kinds = (int, float, str, bool, list, tuple, dict, type(None))
    return {name: value for name, value in state.items() if isinstance(value, kinds)}
