# SPDX-License-Identifier: Apache-2.0
"""Drawn miniatures of real data sets, in their very layouts."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.commands import Finished, run_command

COLUMNS = ('img_id', 'img_filename', 'y', 'split', 'place', 'place_filename')
CLASSES = ('landbird', 'waterbird')
PLACES = ('land', 'water')
TRAIN, VAL, TEST = 0, 1, 2
# (width, height): photographs are not all of one size.
SIZES = ((96, 72), (88, 80), (72, 96))


def group_sizes(per_group: int) -> dict[int, tuple[int, int, int, int]]:
    """Samples of each group (``2 * label + place``) in each split: train is mostly correlated."""
    many, few = 2 * per_group, max(1, per_group // 8)
    return {TRAIN: (many, few, few, many), VAL: (per_group,) * 4, TEST: (per_group,) * 4}


def draw_waterbirds(root: Path, per_group: int = 4, seed: int = 0) -> Path:
    """Draws a data set of ``metadata.csv``, JPEG images and, beside them, ``*_mask.png``.

    A landbird is a round ellipse with a short beak, a waterbird a long ellipse with a neck; land is
    brown and green blotches, water is blue waves. Splits are mixed, as they are in the real file.

    Args:
        root: folder to draw into; made if it does not exist.
        per_group: samples of each group in val and test. Train has twice as many of the two groups
            whose bird fits the place and ``max(1, per_group // 8)`` of each of the others.
        seed: all pictures follow from it.

    Returns:
        The folder of ``metadata.csv``, which is ``data_root`` of ``mmgap.Waterbirds``.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    samples = [
        (label, place, split)
        for split, sizes in group_sizes(per_group).items()
        for group, count in enumerate(sizes)
        for label, place in [divmod(group, 2)]
        for _ in range(count)
    ]
    np.random.default_rng(seed).shuffle(samples)
    rows = []
    for index, (label, place, split) in enumerate(samples):
        rng = np.random.default_rng([seed, index])
        name = f'{label + 1:03d}.Drawn_{CLASSES[label]}/Drawn_{CLASSES[label]}_{index:04d}.jpg'
        image, mask = draw_scene(label, place, rng)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path, quality=95)
        Image.fromarray(mask).save(path.with_name(f'{path.stem}_mask.png'))
        place_name = f'/{PLACES[place][0]}/{PLACES[place]}/{index:08d}.jpg'
        rows.append((index + 1, name, label, split, place, place_name))
    with (root / 'metadata.csv').open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return root


def draw_scene(label: int, place: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws one bird on one place.

    Returns:
        The image, (H, W, 3) uint8, and the mask, (H, W) uint8 with the bird at 255 and 0 elsewhere.
    """
    width, height = SIZES[rng.integers(len(SIZES))]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = _water(x, y, rng) if place else _land(x, y, rng)
    bird = _bird(label, x, y, rng)
    colour = rng.uniform(40, 230, 3)
    shade = 1 - 0.3 * (y / height)[..., None]
    image = np.where(bird[..., None], colour * shade, image)
    image = image + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), bird.astype(np.uint8) * 255


def _water(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    waves = np.sin(y * rng.uniform(0.5, 0.9) + 2 * np.sin(x * 0.08 + rng.uniform(0, 6)))
    return np.array([40.0, 90.0, 170.0]) + 35 * waves[..., None]


def _land(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blotches = sum(
        np.sin(x * fx + phase_x) * np.sin(y * fy + phase_y)
        for fx, fy, phase_x, phase_y in rng.uniform([0.1, 0.1, 0, 0], [0.5, 0.5, 6, 6], (4, 4))
    )
    return np.array([95.0, 110.0, 45.0]) + blotches[..., None] * np.array([25.0, 15.0, 10.0])


def _bird(label: int, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool, the pixels of a bird that lies wholly inside the image."""
    height, width = x.shape
    cx, cy = width * rng.uniform(0.45, 0.55), height * rng.uniform(0.5, 0.6)
    size = rng.uniform(0.15, 0.18) * min(width, height)
    facing = rng.choice([-1, 1])

    def ellipse(dx: float, dy: float, rx: float, ry: float) -> np.ndarray:
        return (
            ((x - cx - facing * dx * size) / (rx * size)) ** 2
            + ((y - cy - dy * size) / (ry * size)) ** 2
        ) <= 1

    if label == 0:
        return ellipse(0, 0, 1.2, 1.0) | ellipse(0.9, -0.9, 0.6, 0.6) | ellipse(1.5, -0.9, 0.4, 0.2)
    return ellipse(0, 0, 1.7, 0.7) | ellipse(1.4, -0.9, 0.25, 1.1) | ellipse(1.7, -1.9, 0.6, 0.3)


def draw_taskonomy(
    folder: Path,
    buildings: tuple[str, ...],
    views: int,
    size: int = 20,
    between: str = '',
) -> Path:
    """A miniature of Taskonomy: pictures, depth in 1/512 m with holes, and masks."""
    rng = np.random.default_rng(0)
    for building in buildings:
        for view in range(views):
            name = f'point_{view}_view_0_domain'
            depth = rng.integers(400, 4000, (size, size)).astype(np.uint16)
            depth[:2] = 65535
            mask = np.full((size, size), 255, np.uint8)
            mask[:, :3] = 0
            for domain, what, pixels in (
                ('rgb', 'rgb', rng.integers(0, 256, (size, size, 3), dtype=np.uint8)),
                ('depth_zbuffer', 'depth_zbuffer', depth),
                ('mask_valid', 'depth_zbuffer', mask),
            ):
                place = folder / domain / between / building
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / f'{name}_{what}.png')
    return folder


def draw_nyu(folder: Path, size: tuple[int, int], count: int = 4) -> Path:
    """A miniature of NYU in MMSegmentation's layout; ``size`` is width and height."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for kind in ('images', 'annotations'):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            depth = rng.integers(800, 9000, (size[1], size[0])).astype(np.uint16)
            depth[:2] = 0
            Image.fromarray(image).save(folder / 'images' / split / f'bedroom_{i:04d}.jpg')
            Image.fromarray(depth).save(folder / 'annotations' / split / f'bedroom_{i:04d}.png')
    return folder


SPECIES = (
    'empty',
    'bos taurus',
    'loxodonta africana',
    'aepyceros melampus',
    'equus quagga',
    'giraffa camelopardalis',
    'madoqua guentheri',
    'panthera leo',  # none of the seven
)


def draw_iwildcam(folder: Path, sequences: int = 6) -> Path:
    """A miniature of iWildCam in WILDS' layout, with a MegaDetector file beside it.

    Every sequence of every split has two pictures of each species; WILDS' labels are 10 times the
    index among ``SPECIES``. The top and bottom 2 of 40 rows are white: the camera's strips.
    """
    rng = np.random.default_rng(0)
    (folder / 'train').mkdir(parents=True)
    rows, images, number = [], [], 0
    for place, split in enumerate(('train', 'val', 'test', 'id_val', 'id_test')):
        for sequence in range(sequences):
            for label, name in [(i, s) for i, s in enumerate(SPECIES) for _ in range(2)]:
                number += 1
                pixels = rng.integers(0, 200, (40, 60, 3), dtype=np.uint8)
                pixels[:2] = pixels[-2:] = 255
                filename = f'{number:04d}.jpg'
                Image.fromarray(pixels).save(folder / 'train' / filename, quality=95)
                hour = (3, 12)[sequence % 2]
                rows.append(
                    dict(
                        filename=filename,
                        y=10 * label,
                        split=split,
                        location_remapped=100 + place,
                        sequence_remapped=100 * place + sequence,
                        datetime=f'2013-06-05 {hour:02d}:44:19.000',
                    )
                )
                where = [0.25, 0.25, 0.5, 0.5]
                if name == 'aepyceros melampus':  # at the edge, where a centre crop has nothing
                    where = [0.0, 0.25, 0.125, 0.5]
                elif name == 'equus quagga' and sequence == 1:  # nothing around it
                    where = [0.0, 0.0, 1.0, 1.0]
                elif name == 'madoqua guentheri' and sequence == 1:  # in the strip
                    where = [0.25, 0.0, 0.5, 0.03]
                found = [dict(category='1', conf=0.9, bbox=where)]
                weak = dict(category='1', conf=0.1, bbox=[0, 0, 1, 1])
                person = dict(category='2', conf=0.9, bbox=[0, 0, 1, 1])
                found = [*found, weak, person] if name != 'empty' else [weak]
                images.append(dict(file=f'somewhere/{filename}', detections=found))
    _write_rows(folder / 'metadata.csv', rows)
    names = [dict(y=10 * i, category_id=i, name=name) for i, name in enumerate(SPECIES)]
    _write_rows(folder / 'categories.csv', names)
    (folder / 'detections.json').write_text(json.dumps(dict(images=images)))
    return folder


def convert_iwildcam(src: Path, out: Path, *options: object) -> Finished:
    """Make the data of ``mmgap.IWildCam`` out of a miniature, with its MegaDetector file."""
    if (src / 'detections.json').exists():
        options = ('--detections', src / 'detections.json', *options)
    return run_command('dataset_converters/iwildcam', '--src', src, '--out', out, *options)


def _write_rows(path: Path, rows: list[dict]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
