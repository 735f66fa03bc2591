# SPDX-License-Identifier: Apache-2.0
"""Names the places in a benchmark's images, with a classifier that saw rendered scenes only.

Writes ``OUT/places.json``: for each method, the share of its images whose place is one of the
counter-group's (water around a landbird, land around a waterbird), of the own group's places, of
the world's other places, and of backdrops; mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from common import WEIGHTS
from PIL import Image
from probes import PLACE_NAMES, classify, scene_classifier

from mmgap.files import write_json
from mmgap.pool import SamplePool
from mmgap.toyworld.vocabulary import LAND_PLACES, PLACES, WATER_PLACES

KINDS = ('counter-group', 'own group', 'other places', 'backdrops')


def shares(net, pool: SamplePool) -> list[float]:
    """Share of each of ``KINDS`` among a pool's images."""
    images = np.stack([np.array(Image.open(pool.path(s))) for s in pool.samples])
    names = [PLACE_NAMES[i] for i in classify(net, images)[:, 0]]
    own = {0: LAND_PLACES, 1: WATER_PLACES}
    counts = dict.fromkeys(KINDS, 0)
    for sample, name in zip(pool.samples, names, strict=True):
        if name in own[1 - sample.label]:
            counts['counter-group'] += 1
        elif name in own[sample.label]:
            counts['own group'] += 1
        else:
            counts['other places' if name in PLACES else 'backdrops'] += 1
    return [counts[kind] / len(images) for kind in KINDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder of tools/benchmark.py')
    args = parser.parse_args()
    net = scene_classifier(WEIGHTS / 'toybirds-resnet18.safetensors')
    found: dict[str, list[list[float]]] = {}
    for about in sorted(args.out.glob('pools/*/about.json')):
        method = json.loads(about.read_text())['method']
        found.setdefault(method, []).append(shares(net, SamplePool(about.parent)))
    places = {
        method: {
            kind: dict(mean=float(np.mean(values)), std=float(np.std(values)))
            for kind, values in zip(KINDS, np.array(rows).T, strict=True)
        }
        for method, rows in found.items()
    }
    write_json(args.out / 'places.json', places)
    for method, row in places.items():
        print(method, {kind: round(value['mean'], 3) for kind, value in row.items()})


if __name__ == '__main__':
    main()
