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

from PIL import Image, ImageDraw
from tqdm import tqdm

from mmgap.datasets.iwildcam import CLASSES, COLUMNS
from mmgap.files import write_image, write_json
from mmgap.images import read_image
from mmgap.masks.boxes import LISTED, MOST, Boxes, listed, megadetector, why_unusable

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


def convert(name: str, boxes: list[list[float]] | None, args: argparse.Namespace) -> None:
    """Cut one image, and draw its mask if it has boxes."""
    target = args.out / 'images' / name
    mask_path = (args.out / 'masks' / name).with_suffix('.png')
    if target.exists():
        return
    image = Image.fromarray(read_image(str(args.src / 'train' / name)))
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


def check_names(boxes: Boxes, names: list[str]) -> None:
    """See that a file of boxes is of these images, and say how many of them it has."""
    known = [name for name in names if boxes.given(name) is not None]
    if not known:
        raise SystemExit(
            f'{boxes.path} has none of the {len(names)} images: theirs are named like '
            f'{names[0]!r}, its own like {next(iter(boxes.boxes), None)!r}'
        )
    print(f'{boxes.path} has {len(known)} of the {len(names)} images')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--src', type=Path, required=True, help='folder of WILDS: iwildcam_v2.0')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--detections', type=Path, help='JSON file of MegaDetector')
    parser.add_argument('--min-confidence', type=float, default=0.5, help='of a detection')
    parser.add_argument('--top', type=float, default=0.05, help='share of the height to cut off')
    parser.add_argument('--bottom', type=float, default=0.07, help='share of the height to cut off')
    parser.add_argument(
        '--skip-faulty', action='store_true', help='leave out images that cannot be read'
    )
    args = parser.parse_args()
    for name in ('top', 'bottom'):
        if not 0 <= getattr(args, name) < 0.5:
            parser.error(f'--{name} must be in [0, 0.5), got {getattr(args, name)}')
    if args.detections is not None and not args.detections.is_file():
        parser.error(f'--detections {args.detections} does not exist')
    ours = labels(args.src)
    columns = ('filename', 'y', 'split', 'location_remapped', 'sequence_remapped', 'datetime')
    rows = [row for row in read_csv(args.src / 'metadata.csv', columns) if row['y'] in ours]
    boxes = None
    if args.detections is not None:
        boxes = megadetector(args.detections, args.min_confidence)
        check_names(boxes, [row['filename'] for row in rows])
    check_settings(args)
    written, faults = [], {}
    for row in tqdm(rows, unit='image'):
        try:
            convert(row['filename'], boxes.given(row['filename']) if boxes else None, args)
        except (FileNotFoundError, ValueError) as error:
            faults[row['filename']] = str(error)
            continue
        hour = datetime.fromisoformat(row['datetime']).hour
        places = (row['location_remapped'], row['sequence_remapped'])
        written.append((row['filename'], ours[row['y']], row['split'], *places, hour))
    if faults and (not args.skip_faulty or not written):
        raise SystemExit(
            f'{len(faults)} of {len(rows)} images cannot be converted:\n{listed(faults, LISTED)}\n'
            'There is no metadata.csv yet. Bring them back and run the same command, or leave them '
            'out with --skip-faulty'
        )
    temporary = args.out / 'metadata.csv.tmp'
    with temporary.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(written)
    os.replace(temporary, args.out / 'metadata.csv')
    names = [Path(name).with_suffix('.png') for name, *_ in written]
    masked = sum((args.out / 'masks' / name).exists() for name in names)
    print(f'{len(written)} images, {masked} with masks, in {args.out}')
    if faults:
        print(f'{len(faults)} are left out:\n{listed(faults)}')


if __name__ == '__main__':
    main()
