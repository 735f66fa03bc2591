# SPDX-License-Identifier: Apache-2.0
"""Pretrains the ResNet-18 that stands in for ImageNet weights.

It learns sub-types of birds (six, and no bird) on uncorrelated places and backdrops, and place,
time and weather. Like ImageNet's weights, it has seen birds; unlike them, it has seen this world.
Writes ``OUT/toybirds-resnet18.safetensors``, keys ``backbone.…`` of an mmpretrain classifier.

With ``--zoo CONFIG`` it pretrains the backbones of the config's zoo instead, each into the file
that its ``init_cfg`` names; those that are there stay. These get a few minutes each, in which
transformers above all learn places long before birds, so birds weigh more and count as land or
water birds too.
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import FIRST_SEED, Progress, batches, parser
from mmengine.logging import MMLogger
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mmgap.toyworld.birds import SUBTYPES
from mmgap.toyworld.renderer import Scene, render
from mmgap.toyworld.vocabulary import BACKDROPS, BIRDS, COLOURS, PATTERNS, PLACES, TIMES, WEATHERS

BACKBONE = {
    'depth': 18,
    'base_channels': 32,
    'stem_channels': 32,
    'deep_stem': True,
    'out_indices': (3,),
}
# The mean and std that configs give to their data preprocessor (RGB, 0..255).
MEAN, STD = 127.5, 127.5
_KINDS = [(None, None)] + [(bird, sub) for bird in BIRDS for sub in SUBTYPES[bird]]


def draw(index: int) -> tuple[np.ndarray, list[int]]:
    """Picture and labels (sub-type, place or pattern, time, weather, colour or -1)."""
    rng = np.random.default_rng([6, index])
    kind = 0 if rng.random() < 0.1 else int(rng.integers(1, len(_KINDS)))
    if rng.random() < 0.3:
        place = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
        colour, pattern = place.split(' ', 1)
        where = len(PLACES) + PATTERNS.index(pattern)
        tint = COLOURS.index(colour)
    else:
        where, tint = int(rng.integers(len(PLACES))), -1
        place = PLACES[where]
    time, weather = int(rng.choice(3, p=(0.5, 0.2, 0.3))), int(rng.choice(3, p=(0.5, 0.3, 0.2)))
    bird, subtype = _KINDS[kind]
    scene = Scene(bird, place, TIMES[time], WEATHERS[weather], FIRST_SEED + 6_000_000 + index)
    return render(scene, subtype).image, [kind, where, time, weather, tint]


def main() -> None:
    options = parser(__doc__, steps=700, batch=96, scenes=14000)
    options.add_argument('--zoo', metavar='CONFIG', help='pretrain the backbones of its zoo')
    options.add_argument('--models', nargs='+', help='some of the zoo; all by default')
    args = options.parse_args()
    chosen = (
        zoo_backbones(args.zoo, args.models)
        if args.zoo
        else {args.out / 'toybirds-resnet18.safetensors': dict(BACKBONE, type='ResNet')}
    )
    if not chosen:
        print('all of them are there')
        return
    with Pool(2) as pool:
        drawn = pool.map(draw, range(args.scenes + 500), 250)
    images = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2)
    labels = torch.tensor([d[1] for d in drawn])
    MMLogger.get_instance('mmgap', log_level='WARNING')  # or it tells how each layer is initialised
    for path, settings in chosen.items():
        print(f'{path}: {settings["type"]}')
        train(args, settings, path, images, labels)


def zoo_backbones(path: str, names: list[str] | None) -> dict[Path, dict[str, Any]]:
    """By the file that it goes into, the config of each backbone that is not there yet."""
    from mmengine.config import Config

    zoo = Config.fromfile(path).zoo
    unknown = sorted(set(names or ()) - set(zoo))
    if unknown:
        raise SystemExit(f'--models names {unknown}; the zoo of {path} has {list(zoo)}')
    chosen = {}
    for name in names or zoo:
        if 'model' not in zoo[name]:
            continue  # the config's own, whose backbone is packaged
        settings = dict(zoo[name].model.backbone)
        file = Path(settings.pop('init_cfg').checkpoint.removeprefix('mmgap://'))
        if not file.exists():
            chosen[file] = settings
    return chosen


def train(
    args: argparse.Namespace,
    settings: dict[str, Any],
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Pretrains one backbone and writes it to ``path``."""
    from mmpretrain.registry import MODELS

    torch.manual_seed(6)
    backbone = MODELS.build(settings)
    if path.stem != 'toybirds-resnet18':  # the packaged one was trained without
        backbone.init_weights()
    backbone.eval()  # finding the width must not enter the statistics
    with torch.no_grad():
        width = pooled(backbone, images[:2].float()).shape[1]
    backbone.train()
    sizes = [len(_KINDS), len(PLACES) + len(PATTERNS), len(TIMES), len(WEATHERS), len(COLOURS)]
    weights = [1.0, 0.5, 0.2, 0.2, 0.1]
    if args.zoo:
        weights[0] = 2.0
        weights.append(0.5)
        sizes.append(1 + len(BIRDS))
        bird = torch.tensor([0] + [1 + BIRDS.index(name) for name, _ in _KINDS[1:]])
        labels = torch.cat([labels, bird[labels[:, 0]][:, None]], dim=1)
    heads = nn.ModuleList(nn.Linear(width, n) for n in sizes)
    model = nn.ModuleDict({'backbone': backbone, 'heads': heads}).to(args.device)
    model.to(memory_format=torch.channels_last)
    peak = 4e-3 if settings['type'] in ('ResNet', 'MobileNetV2') else 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, args.steps, pct_start=0.15)

    def predict(x: torch.Tensor) -> list[torch.Tensor]:
        x = ((x.to(args.device).float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        features = pooled(backbone, x)
        return [head(features) for head in heads]

    report, order = Progress(args.steps), batches(args.scenes, args.batch, 6)
    for step in range(1, args.steps + 1):
        index = torch.from_numpy(next(order))
        x, y = images[index], labels[index].to(args.device)
        if step % 2:
            x = x.flip(-1)
        losses = [
            w * F.cross_entropy(p, y[:, k], ignore_index=-1)
            for k, (w, p) in enumerate(zip(weights, predict(x), strict=True))
        ]
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        optimizer.step()
        schedule.step()
        report(step, kind=losses[0], place=losses[1])
    model.eval()
    with torch.no_grad():
        found = torch.stack([p.argmax(1) for p in predict(images[args.scenes :])], 1).cpu()
    held_out = labels[args.scenes :]
    for k, name in enumerate(('sub-type', 'place', 'time', 'weather')):
        print(f'{name}: {(found[:, k] == held_out[:, k]).float().mean():.3f}')
    state = {
        f'backbone.{k}': v.half().contiguous() if v.is_floating_point() else v
        for k, v in backbone.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    save_file(state, temporary, metadata={'format': 'pt'})
    os.replace(temporary, path)


def pooled(backbone: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``(B, width)``: the last features, averaged over the picture where they have places."""
    features = backbone(x)[-1]
    return features.mean((2, 3)) if features.ndim == 4 else features


if __name__ == '__main__':
    main()
