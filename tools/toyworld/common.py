# SPDX-License-Identifier: Apache-2.0
"""What the training scripts of the toy world share: scenes to learn from, and a training loop."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmgap.toyworld.renderer import WORLD_VERSION, Scene, render  # noqa: E402
from mmgap.toyworld.vocabulary import (  # noqa: E402
    BACKDROPS,
    BIRDS,
    LAND_PLACES,
    PLACES,
    TIMES,
    WATER_PLACES,
    WEATHERS,
)

WEIGHTS = Path(__file__).resolve().parents[2] / 'mmgap' / 'toyworld' / 'weights'
# Scene seeds of the generator's world; ToyBirds' splits use other, smaller ones.
FIRST_SEED = 1_000_000_000


def draw_scenes(number: int, seed: int, backdrops: float = 0.35) -> list[Scene]:
    """Draws scenes of the whole world: half without a bird, land and water places more often."""
    rng = np.random.default_rng([seed, 5])
    weights = np.array([1.6 if p in LAND_PLACES + WATER_PLACES else 1.0 for p in PLACES])
    scenes = []
    for k in range(number):
        bird = (None, None, *BIRDS)[int(rng.integers(4))]
        plain = False
        if rng.random() < backdrops:
            place = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
            plain = rng.random() < 0.65
        else:
            place = PLACES[int(rng.choice(len(PLACES), p=weights / weights.sum()))]
        time_of_day = 'day' if plain else str(rng.choice(TIMES, p=(0.46, 0.22, 0.32)))
        weather = 'clear' if plain else str(rng.choice(WEATHERS, p=(0.46, 0.30, 0.24)))
        scenes.append(Scene(bird, place, time_of_day, weather, FIRST_SEED + seed * 1_000_000 + k))
    return scenes


def _render_many(scenes: list[Scene]) -> np.ndarray:
    return np.stack([render(s).image for s in scenes])


def render_all(scenes: list[Scene], cache: Path | None = None) -> np.ndarray:
    """Draws all scenes in two processes: (N, 64, 64, 3) uint8; kept in the file ``cache``."""
    if cache is not None and cache.exists():
        return np.load(cache)
    chunks = [scenes[i : i + 250] for i in range(0, len(scenes), 250)]
    with Pool(2) as pool:
        images = np.concatenate(pool.map(_render_many, chunks))
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache.with_suffix('.tmp.npy'), images)
        os.replace(cache.with_suffix('.tmp.npy'), cache)
    return images


def to_input(images: np.ndarray, device: str = 'cpu') -> torch.Tensor:
    """(N, 64, 64, 3) uint8 -> (N, 3, 64, 64) float in [-1, 1], channels last in memory."""
    batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def batches(number: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless shuffled index batches."""
    rng = np.random.default_rng([seed, 9])
    while True:
        order = rng.permutation(number)
        for start in range(0, number - size + 1, size):
            yield order[start : start + size]


def autocast(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16)


def save_state(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Writes what a training needs to go on, as one safetensors file."""
    tensors = {'step': torch.tensor(step)}
    for name, part in (('model', model), ('average', average)):
        tensors |= {f'{name}/{k}': v.contiguous() for k, v in part.state_dict().items()}
    for index, slots in optimizer.state_dict()['state'].items():
        tensors |= {f'optimizer/{index}/{k}': v.contiguous() for k, v in slots.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix('.tmp'))
    os.replace(path.with_suffix('.tmp'), path)


def load_state(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Reads what :func:`save_state` wrote; returns the step."""
    tensors = load_file(path)
    for name, part in (('model', model), ('average', average)):
        part.load_state_dict(
            {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + '/')}
        )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith('optimizer/'):
            _, index, slot = key.split('/')
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': state})
    return int(tensors['step'])


class Progress:
    """Prints a line now and then: step, seconds per step, running means."""

    def __init__(self, total: int, every: int = 50) -> None:
        self.total, self.every, self.sums, self.count = total, every, {}, 0
        self.start = self.last = time.time()

    def __call__(self, step: int, **values: float) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(torch.as_tensor(value).detach())
        self.count += 1
        if step % self.every == 0 or step == self.total:
            now = time.time()
            means = ' '.join(f'{k} {v / self.count:.4f}' for k, v in self.sums.items())
            print(
                f'{step}/{self.total} {means} {(now - self.last) / self.count:.3f} s/step '
                f'{now - self.start:.0f} s',
                flush=True,
            )
            self.sums, self.count, self.last = {}, 0, now


def replace_folder(temporary: Path, final: Path) -> None:
    """Moves a finished folder into place."""
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(final.name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def parser(description: str, **defaults: int) -> argparse.ArgumentParser:
    """Arguments that all scripts share; ``defaults`` become integer options."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument('--out', type=Path, default=WEIGHTS, help='folder for the weights')
    result.add_argument(
        '--cache',
        type=Path,
        default=Path('work_dirs/toyworld'),
        help='folder for rendered scenes and checkpoints to resume from',
    )
    result.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    for name, value in defaults.items():
        result.add_argument(f'--{name}', type=int, default=value)
    return result


def write_meta(path: Path, **values: object) -> None:
    """Writes a small JSON file beside weights, the world's version in it."""
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps({'world_version': WORLD_VERSION, **values}, indent=2) + '\n')
    os.replace(temporary, path)
