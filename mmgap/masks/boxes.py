# SPDX-License-Identifier: Apache-2.0
"""What the converters share: boxes of objects, and whether a mask can be used."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmgap.sources.masked import around_object

ANIMAL = '1'  # MegaDetector's category
MOST = 0.95  # of a square that an object may fill; around it something is drawn
FAULTS = (AttributeError, KeyError, TypeError, ValueError)  # of what is in a file
LISTED = 20  # faults in a message
SEEN_AT = 64  # pixels of the side at which an object must be seen


def why_unusable(mask: Image.Image, most: float) -> str | None:
    """What is wrong with a mask in the square that a generator sees; None if nothing is.

    Args:
        mask: 8 bit, object bright.
        most: Share of the square that the object may fill; at 1 all but the whole of it.
    """
    size = (SEEN_AT, SEEN_AT)
    square = ImageOps.fit(mask, size, Image.Resampling.NEAREST, 0, around_object(mask, 1.0))
    share = sum(square.histogram()[128:]) / SEEN_AT**2
    if share == 0:
        return f'its mask is empty, or the object too small to be seen at {SEEN_AT} pixels'
    if share > most or share == 1:
        return f'its mask fills {share:.0%} of the middle square: nothing is left to be drawn'
    return None


class Boxes:
    """Boxes of objects, by the path that their file gives an image.

    Args:
        path: The file, for messages.
        boxes: x, y, width and height of each object of each image.
        in_pixels: Whether they are in pixels. Else they are shares of the image's sides.
    """

    def __init__(
        self, path: Path, boxes: dict[str, list[list[float]]], in_pixels: bool = False
    ) -> None:
        self.path = path
        self.boxes = boxes
        self.in_pixels = in_pixels
        self._by_name = defaultdict(list)
        for name in boxes:
            self._by_name[name.split('/')[-1]].append(name)

    def given(self, name: str) -> list[list[float]] | None:
        """Boxes of an image as the file has them; None if it does not have the image.

        Args:
            name: The image's path, or the end of the one in the file, which may lack the ending.

        Raises:
            ValueError: If several paths in the file end so.
        """
        for own in (name, name.rpartition('.')[0]):
            names = self._by_name.get(own.split('/')[-1], ())
            names = [other for other in names if f'/{other}'.endswith(f'/{own}')]
            if len(names) > 1:
                both = f'{names[0]} and {names[1]}'
                raise ValueError(f'{self.path} has two images of this name: {both}')
            if names:
                return self.boxes[names[0]]
        return None

    def of(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Boxes of an image: left, top, right and bottom in pixels.

        Args:
            name: As for :meth:`given`.
            size: Width and height in pixels.

        Returns:
            ``(N, 4)`` float, within the image; N is 0 if the file has no box of this image.

        Raises:
            ValueError: If several paths in the file end so, or a box lies mostly outside.
        """
        rows = np.array(self.given(name) or [], np.float64).reshape(-1, 4)
        if not self.in_pixels:
            rows = rows * (*size, *size)
        given = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
        inside = given.clip(0, (*size, *size))
        area = (inside[:, 2:] - inside[:, :2]).prod(axis=1)
        outside = ~(area > 0.5 * rows[:, 2:].prod(axis=1))
        if outside.any():
            box = ', '.join(f'{edge:.0f}' for edge in given[outside][0])
            raise ValueError(
                f'its box ({box}) does not lie within its {size[0]}x{size[1]} pixels: {self.path} '
                'is of other images, or of these at another size'
            )
        return inside


def read_boxes(path: Path, least: float) -> Boxes:
    """Read a file of boxes: MegaDetector's (``.json``) or CUB-200-2011's ``bounding_boxes.txt``.

    Args:
        path: The file.
        least: Confidence that a detection of MegaDetector must have.
    """
    if not path.is_file():
        raise SystemExit(f'{path} does not exist; it must be a file of boxes')
    if path.suffix == '.json':
        return megadetector(path, least)
    if path.suffix == '.txt':
        return cub(path)
    raise SystemExit(
        f'{path} is neither a .json file of MegaDetector nor the bounding_boxes.txt of CUB-200-2011'
    )


def megadetector(path: Path, least: float) -> Boxes:
    """Boxes of animals with a confidence of ``least``, as shares of the image."""
    try:
        found = {
            # The file of iWildCam 2021 has an id, which is the name without its ending.
            (image['file'] if 'file' in image else image['id']).replace('\\', '/'): [
                numbers(animal['bbox'])
                for animal in image.get('detections') or ()
                if animal['category'] == ANIMAL and animal['conf'] >= least
            ]
            for image in json.loads(path.read_text())['images']
        }
    except FAULTS as error:
        raise SystemExit(
            f'{path} is not in the batch output format of MegaDetector: '
            f'{type(error).__name__} {error}'
        ) from error
    return Boxes(path, found)


def cub(path: Path) -> Boxes:
    """The box of each image in pixels; ``images.txt`` beside the file says which is which."""
    names_path = path.with_name('images.txt')
    if not names_path.is_file():
        raise SystemExit(f'{names_path} does not exist; it belongs to {path}')
    try:
        names = dict(line.split(maxsplit=1) for line in lines(names_path))
        rows = [line.split() for line in lines(path)]
        return Boxes(path, {names[number]: [numbers(box)] for number, *box in rows}, in_pixels=True)
    except FAULTS as error:
        raise SystemExit(
            f'{path} and its images.txt are not as those of CUB-200-2011: '
            f'{type(error).__name__} {error}'
        ) from error


def lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def numbers(box: list) -> list[float]:
    """The four numbers of a box."""
    if len(box) != 4:
        raise ValueError(f'a box has four numbers, this has {len(box)}: {box}')
    return [float(number) for number in box]


def listed(faults: dict[str, str], most: int | None = None) -> str:
    """What is wrong with images, a line each."""
    rows = [f'  {name}: {fault}' for name, fault in faults.items()][:most]
    rest = len(faults) - len(rows)
    return '\n'.join([*rows, *([f'  … and {rest} more'] if rest else [])])
