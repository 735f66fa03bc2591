# SPDX-License-Identifier: Apache-2.0
"""Does guidance alone bring images to what is described? Asks a classifier of rendered scenes.

For each description one term of guidance is searched with alone. Prompts start as draws from the
vocabulary, so nothing else tells them where to go. Writes ``OUT/guidance.json``: for each kind of
guidance the share of images whose place, time and weather the classifier names as described, and
all three at once; and ``OUT/KIND.png``, a row of images for each description. Beside them stand the
unsearched starts and the sentence itself as a prompt.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import FIRST_SEED, WEIGHTS
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image
from probes import PLACE_NAMES, Net, classify, scene_classifier

from mmgap.files import write_json
from mmgap.loop import Loop
from mmgap.pool import SamplePool
from mmgap.toyworld.renderer import Scene, render
from mmgap.toyworld.vocabulary import BIRDS, TIMES, WEATHERS

CLIP = dict(model='mmgap://toybirds-clip')
# Each place with a time and a weather of its own.
DESCRIBED = {
    'a bird in a forest at night in fog': ('forest', 'night', 'fog'),
    'a bird on the ocean at dusk in rain': ('ocean', 'dusk', 'rain'),
    'a bird in bamboo by day in clear weather': ('bamboo', 'day', 'clear'),
    'a bird on a lake at night in clear weather': ('lake', 'night', 'clear'),
    'a bird in a desert at dusk in fog': ('desert', 'dusk', 'fog'),
    'a bird in the snow by day in rain': ('snow field', 'day', 'rain'),
    'a bird in a meadow at night in rain': ('meadow', 'night', 'rain'),
    'a bird in a city by day in fog': ('city', 'day', 'fog'),
}
ASPECTS = ('place', 'time', 'weather')


def scenes(net: Net, images: np.ndarray) -> np.ndarray:
    """``(N, 3)`` names of place, time and weather."""
    names = (PLACE_NAMES, TIMES, WEATHERS)
    found = classify(net, images)
    return np.array([[known[i] for known, i in zip(names, row, strict=True)] for row in found])


def target_folder(folder: Path, where: tuple[str, str, str], number: int) -> Path:
    """Target images of a described place: birds of both kinds, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        scene = Scene(BIRDS[i % 2], *where, seed=FIRST_SEED - 1 - i)
        Image.fromarray(render(scene).image).save(folder / f'{i:02d}.png')
    return folder


def draw(
    loop: Loop, term: dict[str, Any] | None, text: str, args: argparse.Namespace
) -> np.ndarray:
    """``(N, 64, 64, 3)`` images of a prompt per class, searched with one term alone.

    Without a term they are those of the starts, or of ``text`` if there is one.
    """
    settings = replace(
        loop.settings.search,
        prompts_per_class=1,
        tokens=8,
        steps=args.steps,
        stop_loss=None,
        init='vocabulary',
        scope='class',
        template='{}',
        aim=0.0,
    )
    terms = [term or dict(type='mmgap.AdversarialLoss')]
    loop = loop.variant(search=settings, feedback=terms)
    search = loop.prompt_search(loop.target())
    prompts = loop.initial_prompts(search)
    if term:
        search.run(prompts)
    elif text:
        prompts = [loop.generator.prompts.text_prompt(text, 'sentence')]
    with tempfile.TemporaryDirectory() as folder:
        pool = SamplePool(folder)
        loop.synthesize(prompts, args.number, pool)
        return np.stack([np.array(Image.open(pool.path(s))) for s in pool.samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default='configs/ap_resnet18_toybirds.py')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=40, help='of each search')
    parser.add_argument('--number', type=int, default=24, help='images per description')
    parser.add_argument('--targets', type=int, default=16, help='target images per description')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    loop = Loop.from_config(Config.fromfile(args.config))
    net = scene_classifier(WEIGHTS / 'toybirds-resnet18.safetensors')
    kinds: dict[str, Callable[[str, Path], dict[str, Any] | None]] = {
        'starts': lambda *_: None,
        'the sentence itself': lambda *_: None,
        'text, CLIP': lambda text, _: dict(
            type='mmgap.TextGuidance',
            descriptions=[text],
            space='clip',
            distance='cosine',
            clip=CLIP,
        ),
        'text, encoder': lambda text, _: dict(type='mmgap.TextGuidance', descriptions=[text]),
        'images, CLIP': lambda _, folder: dict(
            type='mmgap.ImageGuidance', images=str(folder), clip=CLIP
        ),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, make in kinds.items():
        found[kind], rows = {}, []
        for text, where in DESCRIBED.items():
            with tempfile.TemporaryDirectory() as folder:
                targets = target_folder(Path(folder), where, args.targets)
                said = '' if kind == 'starts' else text
                images = draw(loop, make(text, targets), said, args)
            right = scenes(net, images) == np.array(where)
            found[kind][text] = dict(zip(ASPECTS, right.mean(axis=0).tolist(), strict=True))
            found[kind][text]['all'] = float(right.all(axis=1).mean())
            print(kind, text, found[kind][text], flush=True)
            rows.append(np.concatenate(images[:12], axis=1))
        found[kind]['mean'] = {
            aspect: float(np.mean([hits[aspect] for hits in found[kind].values()]))
            for aspect in (*ASPECTS, 'all')
        }
        print(kind, 'mean', found[kind]['mean'], flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        name = kind.replace(',', '').replace(' ', '-')
        Image.fromarray(np.concatenate(rows)).save(args.out / f'{name}.png')
        write_json(args.out / 'guidance.json', found)


if __name__ == '__main__':
    main()
