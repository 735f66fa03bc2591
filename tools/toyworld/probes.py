# SPDX-License-Identifier: Apache-2.0
"""Networks that measure the toy world: a scene classifier, and a biased bird classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from common import draw_scenes, render_all
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from train_backbone import BACKBONE, MEAN, STD

from mmgap.toyworld.renderer import Scene, render
from mmgap.toyworld.splits import record
from mmgap.toyworld.vocabulary import PATTERNS, PLACES, TIMES, WEATHERS

PLACE_NAMES = PLACES + PATTERNS


class Net(nn.Module):
    """The packaged backbone with linear heads; pictures are (N, 64, 64, 3) uint8 RGB."""

    def __init__(self, weights: Path, *sizes: int) -> None:
        from mmpretrain.models import ResNet

        super().__init__()
        self.backbone = ResNet(**BACKBONE)
        state = load_file(weights)
        self.backbone.load_state_dict(
            {
                k.removeprefix('backbone.'): v.float() if v.is_floating_point() else v
                for k, v in state.items()
            }
        )
        self.heads = nn.ModuleList(nn.Linear(256, n) for n in sizes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.permute(0, 3, 1, 2).float() - MEAN) / STD
        return self.backbone(x.contiguous(memory_format=torch.channels_last))[0].mean((2, 3))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.features(images)
        return [head(features) for head in self.heads]


def fit(
    net: Net, images: np.ndarray, labels: np.ndarray, steps: int, rate: float, seed: int
) -> None:
    """Trains the whole network; labels are (N, heads), -1 where there is none."""
    rng, x, y = np.random.default_rng(seed), torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    net.train()
    for step in range(steps):
        index = torch.from_numpy(rng.choice(len(x), 64))
        batch = x[index].flip(2) if step % 2 else x[index]
        loss = sum(
            F.cross_entropy(p, y[index, k], ignore_index=-1) for k, p in enumerate(net(batch))
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def scene_labels(scene: Scene) -> tuple[int, int, int]:
    where = scene.place.split(' ', 1)[1] if scene.is_backdrop else scene.place
    return PLACE_NAMES.index(where), TIMES.index(scene.time), WEATHERS.index(scene.weather)


def scene_classifier(weights: Path, number: int = 4000, steps: int = 400) -> Net:
    """Learns place, time and weather from rendered scenes alone."""
    torch.manual_seed(11)
    scenes = draw_scenes(number, 11)
    net = Net(weights, len(PLACE_NAMES), len(TIMES), len(WEATHERS))
    fit(net, render_all(scenes), np.array([scene_labels(s) for s in scenes]), steps, 2e-3, 11)
    return net


@torch.no_grad()
def classify(net: Net, images: np.ndarray) -> np.ndarray:
    """(N, heads) best classes."""
    parts = [
        torch.stack([p.argmax(1) for p in net(torch.from_numpy(images[i : i + 128]))], 1)
        for i in range(0, len(images), 128)
    ]
    return torch.cat(parts).numpy()


def split_arrays(split: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, masks, labels and groups of the first records of a ToyBirds split."""
    records = [record(split, i) for i in range(number)]
    drawn = [render(r.scene) for r in records]
    return (
        np.stack([d.image for d in drawn]),
        np.stack([d.mask for d in drawn]),
        np.array([r.label for r in records]),
        np.array([r.group for r in records]),
    )


def biased_classifier(weights: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> Net:
    """Trains on the correlated split for a few seconds, and falls for the shortcut."""
    torch.manual_seed(seed)
    net = Net(weights, 2)
    fit(net, images, labels[:, None], 100, 1e-3, seed)
    return net


@torch.no_grad()
def extract(net: Net, images: np.ndarray) -> torch.Tensor:
    return torch.cat(
        [net.features(torch.from_numpy(images[i : i + 128])) for i in range(0, len(images), 128)]
    )


def last_layer(
    net: Net,
    real: tuple[torch.Tensor, np.ndarray],
    extra: tuple[torch.Tensor, np.ndarray],
    seed: int,
    steps: int = 400,
) -> nn.Linear:
    """Fine-tunes a copy of the last layer; half of each batch comes from ``extra``."""
    head = nn.Linear(256, 2)
    head.load_state_dict(net.heads[0].state_dict())
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    for _ in range(steps):
        loss = 0.0
        for features, labels in (real, extra):
            index = rng.choice(len(labels), 32)
            loss = loss + F.cross_entropy(head(features[index]), torch.from_numpy(labels[index]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return head


def worst_group(predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    return float(min(np.mean((predicted == labels)[groups == g]) for g in np.unique(groups)))
