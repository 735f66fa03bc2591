#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make the data of mmgap.IWildCam out of iWildCam in WILDS' layout.

Reads ``SRC/metadata.csv``, ``SRC/categories.csv`` and ``SRC/train/*.jpg``
(https://wilds.stanford.edu, licence CDLA-Permissive-1.0). Takes the seven classes of ALIA, cuts the
strips with the camera's own data off the images, and draws masks: the boxes of animals in a
MegaDetector file. Writes ``OUT/metadata.csv``, ``OUT/images`` and ``OUT/masks``. Images that are
there already are not made again, so a killed run goes on; with other settings, take another OUT.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from datetime import datetime
from pathlib import Path

from objects import MOST, megadetector, why_unusable
from PIL import Image, ImageDraw
from tqdm import tqdm

from mmgap.datasets.iwildcam import CLASSES, COLUMNS
from mmgap.files import write_image, write_json

# By their names in categories.csv.
SPECIES = dict(
    zip(
        (
            'empty',
            'bos taurus',
            'loxodonta africana',
            'aepyceros melampus',
            'equus quagga',
            'giraffa camelopardalis',
            'madoqua guentheri',
        ),
        CLASSES,
        strict=True,
    )
)


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a file that must have some columns."""
    if not path.is_file():
        raise SystemExit(f'{path} does not exist; --src is the folder iwildcam_v2.0 of WILDS')
    with path.open(newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise SystemExit(f'{path}: missing column(s) {missing}; found {reader.fieldnames}')
        return list(reader)


def labels(src: Path) -> dict[str, int]:
    """Our class of WILDS' label."""
    rows = read_csv(src / 'categories.csv', ('y', 'name'))
    found = {row['name'].lower(): row['y'] for row in rows}
    missing = [name for name in SPECIES if name not in found]
    if missing:
        raise SystemExit(f'{src / "categories.csv"} lacks the categories {missing}')
    return {found[name]: CLASSES.index(ours) for name, ours in SPECIES.items()}


def check_settings(args: argparse.Namespace) -> None:
    """Keep the settings in OUT, and stop if it was made with others."""
    names = ('top', 'bottom', 'min_confidence')
    settings = {name: getattr(args, name) for name in names}
    settings['detections'] = str(args.detections and args.detections.resolve())
    path = args.out / 'settings.json'
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(
            f'{args.out} was begun with {path.read_text()}, now they are {settings}; take another '
            '--out'
        )
    write_json(path, settings)


def convert(name: str, boxes: list[list[float]], args: argparse.Namespace) -> None:
    """Cut one image, and draw its mask if it has boxes."""
    target = args.out / 'images' / name
    mask_path = (args.out / 'masks' / name).with_suffix('.png')
    if target.exists():
        return
    with Image.open(args.src / 'train' / name) as opened:
        image = opened.convert('RGB')
    width, height = image.size
    top, bottom = round(args.top * height), height - round(args.bottom * height)
    if boxes:
        mask = Image.new('L', image.size)
        for x, y, w, h in boxes:
            corners = (x * width, y * height, (x + w) * width - 1, (y + h) * height - 1)
            ImageDraw.Draw(mask).rectangle(corners, fill=255)
        mask = mask.crop((0, top, width, bottom))
        if why_unusable(mask, MOST) is None:
            write_image(mask_path, mask)
    write_image(target, image.crop((0, top, width, bottom)), quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--src', type=Path, required=True, help='folder of WILDS: iwildcam_v2.0')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--detections', type=Path, help='JSON file of MegaDetector')
    parser.add_argument('--min-confidence', type=float, default=0.5, help='of a detection')
    parser.add_argument('--top', type=float, default=0.05, help='share of the height to cut off')
    parser.add_argument('--bottom', type=float, default=0.07, help='share of the height to cut off')
    args = parser.parse_args()
    for name in ('top', 'bottom'):
        if not 0 <= getattr(args, name) < 0.5:
            parser.error(f'--{name} must be in [0, 0.5), got {getattr(args, name)}')
    if args.detections is not None and not args.detections.is_file():
        parser.error(f'--detections {args.detections} does not exist')
    ours = labels(args.src)
    check_settings(args)
    columns = ('filename', 'y', 'split', 'location_remapped', 'sequence_remapped', 'datetime')
    rows = [row for row in read_csv(args.src / 'metadata.csv', columns) if row['y'] in ours]
    boxes = {}
    if args.detections is not None:
        found = megadetector(args.detections, args.min_confidence).boxes
        boxes = {Path(file).name: rows for file, rows in found.items()}
    written = []
    for row in tqdm(rows, unit='image'):
        convert(row['filename'], boxes.get(row['filename'], []), args)
        hour = datetime.fromisoformat(row['datetime']).hour
        places = (row['location_remapped'], row['sequence_remapped'])
        written.append((row['filename'], ours[row['y']], row['split'], *places, hour))
    temporary = args.out / 'metadata.csv.tmp'
    with temporary.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(written)
    os.replace(temporary, args.out / 'metadata.csv')
    names = [Path(row['filename']).with_suffix('.png') for row in rows]
    masked = sum((args.out / 'masks' / name).exists() for name in names)
    print(f'{len(rows)} images, {masked} with masks, in {args.out}')


if __name__ == '__main__':
    main()
