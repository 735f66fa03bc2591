# SPDX-License-Identifier: Apache-2.0
"""Make the masks of a folder of images, from segmentations or with a segmenter.

``--segmentations DIR`` takes grey pictures in the layout of the images, object bright, as those of
CUB-200-2011 are for Waterbirds: values above 127 are the object. Numbers of objects will do too; of
numbers of classes say with ``--object`` which are meant. ``--segmenter type=… model=…``
builds a segmenter of mmgap's registry (mmgap.SamSegmenter) that is told the boxes of ``--boxes``,
or else that the object is at the centre.

Masks are NAME_mask.png beside the images, or OUT/…/NAME.png. All images are looked at before
anything is written. Masks that are there already are kept, so a killed run goes on, and what you
drew by hand stays; to have one made anew, delete it. A contact sheet shows how they came out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps
from tqdm import tqdm

from mmgap.configs import Changes
from mmgap.datasets.masked_folders import BESIDE, list_images
from mmgap.files import write_image
from mmgap.images import UNREADABLE, read_image, read_mask, reason
from mmgap.masks.boxes import LISTED, MOST, Boxes, listed, read_boxes, why_unusable
from mmgap.registry import TASK_UTILS
from mmgap.seeds import derive_rng
from mmgap.sheet import draw_sheet

SHEET = '_contact_sheet.png'  # after the name of the folder
SHOWN = 40  # masks on the contact sheet
IN_A_ROW = 8
THUMBNAIL = (160, 160)


class Segmentations:
    """Masks out of a folder of grey pictures in the layout of the images."""

    most = 1.0  # a person drew them: they may fill the image, if only something is left

    def __init__(self, folder: Path, names: Sequence[str], objects: Sequence[int] | None) -> None:
        self.folder = folder
        self.objects = objects
        if not any(self.path(name).is_file() for name in names):
            raise SystemExit(
                f'none of {len(names)} images has a segmentation in {folder}; the first would be '
                f'{self.path(names[0])}. --segmentations must have the folders of the images'
            )

    def path(self, name: str) -> Path:
        return (self.folder / name).with_suffix('.png')

    def fault(self, name: str, size: tuple[int, int]) -> str | None:
        """Why an image can have no mask, seen without making it."""
        if not self.path(name).is_file():
            return f'there is no {self.path(name)}'
        try:
            mask = self(name, None)
        except (OSError, ValueError) as error:
            return str(error)
        if mask.size != size:
            ours, theirs = (f'{width}x{height}' for width, height in (size, mask.size))
            return f'the image is {ours}, its segmentation {theirs}'
        return why_unusable(mask, self.most)

    def __call__(self, name: str, image: Image.Image | None) -> Image.Image:
        """The mask of an image."""
        return Image.fromarray(read_mask(str(self.path(name)), self.objects)).convert('L')


class Prompted:
    """Masks of a segmenter that is told boxes, or nothing but the centre."""

    most = MOST

    def __init__(self, settings: dict[str, Any], boxes: Boxes | None) -> None:
        self.boxes = boxes
        try:
            self.segmenter = TASK_UTILS.build(settings)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise SystemExit(
                f'--segmenter {settings}: {type(error).__name__}: {message}'
            ) from error

    def fault(self, name: str, size: tuple[int, int]) -> str | None:
        """Why an image can have no mask, seen without making it."""
        if self.boxes is None:
            return None
        try:
            found = self.boxes.of(name, size)
        except ValueError as error:
            return str(error)
        return None if len(found) else f'{self.boxes.path} has no box for it'

    def __call__(self, name: str, image: Image.Image) -> Image.Image:
        """The mask of an image."""
        boxes = np.zeros((0, 4)) if self.boxes is None else self.boxes.of(name, image.size)
        mask = np.asarray(self.segmenter(np.array(image), boxes))
        if mask.dtype != bool or mask.shape != image.size[::-1]:
            raise SystemExit(
                f'{type(self.segmenter).__name__} gave a mask of {mask.dtype} and shape '
                f'{mask.shape} for {name}; it must be bool and {image.size[::-1]}'
            )
        return Image.fromarray(mask.astype(np.uint8) * 255)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', type=Path, help='folder of the images, and folders of them')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--segmentations', type=Path, metavar='DIR', help='folder of grey pictures')
    source.add_argument(
        '--segmenter',
        nargs='+',
        action=Changes,
        metavar='KEY=VALUE',
        help='type=mmgap.SamSegmenter model=PATH, for example',
    )
    parser.add_argument(
        '--object',
        type=int,
        nargs='+',
        metavar='VALUE',
        help='values of the object in --segmentations that hold numbers of classes',
    )
    parser.add_argument(
        '--boxes',
        type=Path,
        help="where the objects are: a JSON file of MegaDetector, or CUB's bounding_boxes.txt",
    )
    parser.add_argument('--min-confidence', type=float, default=0.5, help="of MegaDetector's boxes")
    parser.add_argument('--out', type=Path, help='folder of the masks; beside the images if none')
    parser.add_argument(
        '--skip-faulty', action='store_true', help='leave out images that can have no mask'
    )
    args = parser.parse_args()
    if args.object is not None and args.segmentations is None:
        parser.error('--object is for --segmentations')
    if args.boxes is not None and args.segmenter is None:
        parser.error('--boxes is for --segmenter; --segmentations need none')
    if args.segmenter is not None and 'type' not in args.segmenter:
        parser.error(f'--segmenter {args.segmenter} must say type=…, as type=mmgap.SamSegmenter')
    for name in ('images', 'segmentations'):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f'{name} {folder} is not a folder')
    for name in ('out', 'segmentations'):
        folder = getattr(args, name)
        if folder is not None and folder.resolve() == args.images.resolve():
            parser.error(f'--{name} {folder} is the folder of the images; it must be another')
    return args


def mask_paths(args: argparse.Namespace) -> dict[str, Path]:
    """Where the mask of each image belongs, by the image's path below the folder."""
    root = args.images.resolve()
    given = [path.resolve() for path in (args.out, args.segmentations) if path is not None]
    others = [path for path in given if root in path.parents]
    paths = {}
    for name in list_images(str(args.images)):
        if name.endswith(SHEET) or any(other in (root / name).parents for other in others):
            continue
        beside = Path(name).with_name(Path(name).stem + BESIDE)
        paths[name] = (
            args.images / beside if args.out is None else (args.out / name).with_suffix('.png')
        )
    if not paths:
        raise SystemExit(f'{args.images} has no images')
    path, number = Counter(paths.values()).most_common(1)[0]
    if number > 1:
        twice = [name for name, other in paths.items() if other == path]
        raise SystemExit(f'{" and ".join(twice)} would have the same mask {path}; rename one')
    return paths


def look(maker: Segmentations | Prompted, images: Path, names: Sequence[str]) -> dict[str, str]:
    """What is wrong with images, by name, before any mask is made."""
    faults = {}
    for name in tqdm(names, desc='look', unit='image'):
        try:
            with Image.open(images / name) as image:
                width, height = image.size
                on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
                fault = maker.fault(name, (height, width) if on_its_side else (width, height))
        except UNREADABLE as error:
            fault = f'it cannot be read: {reason(error)}'
        if fault is not None:
            faults[name] = fault
    return faults


def make(
    maker: Segmentations | Prompted, images: Path, todo: dict[str, Path]
) -> tuple[dict[str, str], dict[str, Image.Image]]:
    """Make masks and write those that can be used; what is wrong with the others, and some."""
    faults: dict[str, str] = {}
    refused: dict[str, Image.Image] = {}
    for name, path in tqdm(todo.items(), desc='masks', unit='image'):
        try:
            mask = maker(name, Image.fromarray(read_image(str(images / name))))
        except (OSError, ValueError) as error:
            faults[name] = str(error)
            continue
        fault = why_unusable(mask, maker.most)
        if fault is None:
            write_image(path, mask)
            continue
        faults[name] = fault
        if len(refused) < SHOWN // 2:
            refused[name] = mask
    return faults, refused


def outlined(path: Path, mask: Image.Image) -> np.ndarray:
    """A thumbnail with the mask's outline in red, and dark where it is not."""
    picture = np.array(ImageOps.pad(Image.fromarray(read_image(str(path))), THUMBNAIL))
    small = ImageOps.pad(mask, THUMBNAIL, Image.Resampling.NEAREST)
    inside, core = (np.array(m) > 127 for m in (small, small.filter(ImageFilter.MinFilter(3))))
    picture[~inside] //= 2
    picture[inside & ~core] = (255, 0, 0)
    return picture


def write_sheet(
    path: Path, images: Path, masks: dict[str, Path], refused: dict[str, Image.Image]
) -> None:
    """Show masks that were not written, and some, by chance, of those there are."""
    order = derive_rng('masks').permutation(len(masks))[: SHOWN - len(refused)]
    shown = {
        name: Image.fromarray(read_mask(str(masks[name]))).convert('L')
        for name in sorted(np.array([*masks])[order])
    }
    rows = []
    for title, part in (('not written', refused), ('masks', shown)):
        for start in range(0, len(part), IN_A_ROW):
            names = [*part][start : start + IN_A_ROW]
            thumbnails = [outlined(images / name, part[name]) for name in names]
            rows.append((title, thumbnails, [Path(name).name[-26:] for name in names]))
    write_image(path, draw_sheet(rows))


def main() -> None:
    args = parse_args()
    paths = mask_paths(args)
    todo = {name: path for name, path in paths.items() if not path.exists()}
    faults: dict[str, str] = {}
    refused: dict[str, Image.Image] = {}
    if todo:
        maker: Segmentations | Prompted
        if args.segmentations is not None:
            maker = Segmentations(args.segmentations, list(todo), args.object)
        else:
            boxes = None
            if args.boxes is not None:
                boxes = read_boxes(args.boxes, args.min_confidence)
            maker = Prompted(args.segmenter, boxes)
        faults = look(maker, args.images, list(todo))
        if faults and (not args.skip_faulty or len(faults) == len(paths)):
            raise SystemExit(
                f'{len(faults)} of {len(paths)} images can have no mask:\n'
                f'{listed(faults, LISTED)}\nNothing was written. Mend them, draw their masks by '
                'hand, or leave them out with --skip-faulty'
            )
        rest = {name: path for name, path in todo.items() if name not in faults}
        found, refused = make(maker, args.images, rest)
        faults.update(found)
    kept = len(paths) - len(todo)
    masks = {name: path for name, path in paths.items() if name not in faults}
    print(f'{len(masks)} of {len(paths)} images have masks, {kept} of them from before')
    if faults:
        print(
            f'{len(faults)} have none:\n{listed(faults)}\nA training set needs a mask of every '
            'image: draw these by hand, or take the images out'
        )
    base = (args.out or args.images).resolve()
    sheet = base.with_name(base.name + SHEET)
    write_sheet(sheet, args.images, masks, refused)
    print(f'Look at {sheet}: kept pixels are bright, with a red outline')


if __name__ == '__main__':
    main()
