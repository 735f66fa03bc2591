# SPDX-License-Identifier: Apache-2.0
"""Measures the packaged tiny Stable Diffusion, and shows what it draws.

Writes ``OUT/report.json`` and ``OUT/samples.png``:

- ``place``, ``time``, ``weather``: share of generated pictures that a classifier trained on
  *rendered* scenes recognises, over all prompts (with and without birds, and backdrops);
- ``inpainted_place``: the same for places drawn around birds of the train split;
- ``vae_psnr``: decibels, on the test split;
- ``real_worst_group``: worst group on test after the last layer saw 100 real renderings of the
  groups that training lacks (mean of seeds);
- ``exact_place_gain``: gain in worst group that 100 pictures from prompts naming the test places
  bring, divided by the gain that the 100 real renderings bring.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, render_all, to_input, write_meta
from PIL import Image, ImageDraw
from probes import (
    biased_classifier,
    classify,
    extract,
    last_layer,
    scene_classifier,
    scene_labels,
    split_arrays,
    worst_group,
)

from mmgap.toyworld.renderer import Scene, caption, render
from mmgap.toyworld.splits import record
from mmgap.toyworld.vocabulary import (
    BACKDROPS,
    BIRDS,
    LAND_PLACES,
    PLACES,
    TIMES,
    WATER_PLACES,
    WEATHERS,
)


class Painter:
    """The stock inpainting pipeline, loaded from the packaged folder."""

    def __init__(self, folder: Path, steps: int, guidance_scale: float) -> None:
        from diffusers import StableDiffusionInpaintPipeline

        self.pipe = StableDiffusionInpaintPipeline.from_pretrained(
            folder, safety_checker=None, torch_dtype=torch.float32
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance_scale = steps, guidance_scale

    def __call__(
        self,
        prompts: list[str],
        images: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Draws (N, 64, 64, 3) uint8; pixels under ``masks`` (255) stay as in ``images``."""
        if images is None:
            images = np.full((len(prompts), 64, 64, 3), 127, np.uint8)
            masks = np.zeros((len(prompts), 64, 64), np.uint8)
        parts = []
        for start in range(0, len(prompts), 32):
            part = slice(start, min(start + 32, len(prompts)))
            drawn = self.pipe(
                prompts[part],
                image=[Image.fromarray(i) for i in images[part]],
                mask_image=[Image.fromarray(255 - m) for m in masks[part]],
                height=64,
                width=64,
                strength=1.0,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                generator=[
                    torch.Generator().manual_seed(seed * 100_000 + k)
                    for k in range(part.start, part.stop)
                ],
                output_type='np',
            ).images
            parts.append((drawn * 255 + 0.5).astype(np.uint8))
        return np.where((masks > 0)[..., None], images, np.concatenate(parts))


def all_scenes(repeats: int) -> list[Scene]:
    """Every place, time and weather, with and without birds; and backdrops on clear days."""
    scenes = [
        Scene(bird, place, t, w)
        for bird in (None, *BIRDS)
        for place in PLACES
        for t in TIMES
        for w in WEATHERS
    ]
    return (scenes + [Scene(None, b) for b in BACKDROPS[::5]]) * repeats


def controllability(painter: Painter, net, repeats: int = 1) -> dict[str, float]:
    scenes = all_scenes(repeats)
    found = classify(net, painter([caption(s) for s in scenes], seed=1))
    right = found == np.array([scene_labels(s) for s in scenes])
    result = dict(zip(('place', 'time', 'weather'), right.mean(0).round(4).tolist(), strict=True))
    names = np.array([s.place for s in scenes])
    result['place_by_name'] = {p: round(float(right[names == p, 0].mean()), 3) for p in PLACES}
    return result


def inpainted_place(painter: Painter, net, train, per_place: int = 24) -> float:
    images, masks, labels, _ = train
    index = np.arange(len(PLACES) * per_place)
    scenes = [Scene(BIRDS[labels[i]], PLACES[k % len(PLACES)]) for k, i in enumerate(index)]
    found = classify(net, painter([caption(s) for s in scenes], images[index], masks[index], 2))
    return float(np.mean(found[:, 0] == [PLACES.index(s.place) for s in scenes]))


@torch.no_grad()
def vae_psnr(painter: Painter, images: np.ndarray) -> float:
    x = to_input(images)
    vae, error = painter.pipe.vae, []
    for part in x.split(64):
        y = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        error.append(((part - y) / 2).pow(2).mean((1, 2, 3)))
    return float(-10 * torch.log10(torch.cat(error).mean()))


def real_counter_examples(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Renderings of the groups that training lacks; from records of val beyond its size."""
    index = [i for i in range(10_000, 10_000 + 2 * number) if record('val', i).group in (1, 2)]
    index = index[:number]
    images, _, labels, _ = (
        np.concatenate(parts) for parts in zip(*(_one('val', i) for i in index), strict=True)
    )
    return images, labels


def _one(split: str, index: int) -> tuple[np.ndarray, ...]:
    r = record(split, index)
    drawn = render(r.scene)
    return drawn.image[None], drawn.mask[None], np.array([r.label]), np.array([r.group])


def place_gain(painter: Painter, backbone: Path, train, number: int, seeds: int) -> dict:
    """Worst groups of base, real renderings and exact-place pictures; and the ratio of gains."""
    images, masks, labels, _ = train
    test_images, _, test_labels, test_groups = split_arrays('test', 1000)
    real_images, real_labels = real_counter_examples(number)
    values: dict[str, list[float]] = {'base': [], 'real': [], 'exact_place': []}
    sheet = None
    for seed in range(seeds):
        index = np.random.default_rng([21, seed]).permutation(len(labels))[:number]
        names = [(WATER_PLACES, LAND_PLACES)[labels[i]][k % 2] for k, i in enumerate(index)]
        prompts = [
            caption(Scene(BIRDS[labels[i]], name)) for i, name in zip(index, names, strict=True)
        ]
        drawn = painter(prompts, images[index], masks[index], 3 + seed)
        sheet = (images[index[:16]], drawn[:16], prompts[:16]) if sheet is None else sheet
        net = biased_classifier(backbone, images, labels, seed)
        real, test = extract(net, images), extract(net, test_images)
        heads = {
            'base': net.heads[0],
            'real': last_layer(net, (real, labels), (extract(net, real_images), real_labels), seed),
            'exact_place': last_layer(
                net, (real, labels), (extract(net, drawn), labels[index]), seed
            ),
        }
        for name, head in heads.items():
            predicted = head(test).argmax(1).numpy()
            values[name].append(worst_group(predicted, test_labels, test_groups))
        print(seed, {k: round(v[-1], 3) for k, v in values.items()}, flush=True)
    base, real, exact = (float(np.mean(values[k])) for k in ('base', 'real', 'exact_place'))
    return {
        'base_worst_group': base,
        'real_worst_group': real,
        'exact_place_worst_group': exact,
        'exact_place_gain': (exact - base) / max(real - base, 1e-6),
        'per_seed': values,
        'sheet': sheet,
    }


def contact_sheet(painter: Painter, pairs, path: Path) -> None:
    """Generated pictures with their captions, doubled in size; then sources beside inpaintings."""
    scenes = [Scene(None, p) for p in PLACES]
    scenes += [
        Scene(BIRDS[k % 2], p, t, w)
        for k, p in enumerate(PLACES)
        for t, w in (
            ('day', 'clear'),
            ('night', 'clear'),
            ('dusk', 'clear'),
            ('day', 'fog'),
            ('day', 'rain'),
            ('night', 'fog'),
        )
    ]
    scenes += [Scene(None, b) for b in BACKDROPS[5::8]]
    texts = [caption(s) for s in scenes]
    cells = list(zip(painter(texts, seed=9), texts, strict=True))
    for source, drawn, text in zip(*pairs, strict=True):
        cells += [(source, 'source'), (drawn, text)]
    columns, width, height = 9, 140, 166
    sheet = Image.new('RGB', (columns * width, -(-len(cells) // columns) * height), 'white')
    pen = ImageDraw.Draw(sheet)
    for k, (image, text) in enumerate(cells):
        x, y = k % columns * width + 6, k // columns * height + 4
        sheet.paste(Image.fromarray(image).resize((128, 128), Image.NEAREST), (x, y))
        words, line, lines = text.split(), '', []
        for word in words:
            if len(line) + len(word) > 21:
                lines, line = [*lines, line], ''
            line += word + ' '
        for number, written in enumerate([*lines, line][:3]):
            pen.text((x, y + 129 + 10 * number), written, fill='black')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name('.samples.tmp.png')
    sheet.quantize(255).save(temporary, optimize=True)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--weights', type=Path, default=WEIGHTS)
    parser.add_argument('--steps', type=int, default=15, help='DDIM steps')
    parser.add_argument('--guidance-scale', type=float, default=5.0)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--images', type=int, default=100)
    args = parser.parse_args()
    start = time.time()
    painter = Painter(args.weights / 'toybirds-sd', args.steps, args.guidance_scale)
    backbone = args.weights / 'toybirds-resnet18.safetensors'
    train = split_arrays('train', 1200)
    report = {
        'steps': args.steps,
        'guidance_scale': args.guidance_scale,
        'seeds': args.seeds,
        'images': args.images,
    }
    gains = place_gain(painter, backbone, train, args.images, args.seeds)
    sheet = gains.pop('sheet')
    net = scene_classifier(backbone)
    scenes = all_scenes(1)
    rendered = classify(net, render_all(scenes)) == np.array([scene_labels(s) for s in scenes])
    report['rendered'] = dict(
        zip(('place', 'time', 'weather'), rendered.mean(0).round(4).tolist(), strict=True)
    )
    report |= controllability(painter, net)
    report['inpainted_place'] = inpainted_place(painter, net, train)
    report['vae_psnr'] = vae_psnr(painter, split_arrays('test', 200)[0])
    report |= gains
    report['seconds'] = round(time.time() - start, 1)
    contact_sheet(painter, sheet, args.out / 'samples.png')
    write_meta(args.out / 'report.json', **report)
    print({k: v for k, v in report.items() if not isinstance(v, dict)})


if __name__ == '__main__':
    main()
