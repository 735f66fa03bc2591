# SPDX-License-Identifier: Apache-2.0
"""Images with foreground masks as sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from mmgap.images import image_loader, read_image, read_mask
from mmgap.sources.condition import Condition, digest_of
from mmgap.sources.memory import SourceMemory


class SourceSet:
    """The labelled, masked images of a dataset, as conditions of a generator.

    Image and mask go through the same resize and crop, which keeps as much of the object as it can.
    Images are read as the dataset's pipeline reads them, masks by :func:`~mmgap.images.read_mask`.

    Args:
        dataset: Any dataset with MMEngine's ``get_data_info``, whose infos carry ``img_path``,
            ``gt_label`` and ``mask_path`` (an image, foreground bright), and optionally ``group``.
            Classes that its metainfo names under ``background`` show no object: their images need
            no mask, nothing of them is kept.
        size: ``(height, width)`` of the conditions in pixels.
        masked: Whether every image must have a mask with an object and something around it.
            Without, the mask of one that has none is the whole image.

    Raises:
        ValueError: If infos carry no ``mask_path``, a label is no class, or a class of the dataset
            has no sources.
    """

    label_type = 'classes'
    unit = None  # depth sources have one

    def __init__(self, dataset: Any, size: tuple[int, int], masked: bool = True) -> None:
        self.dataset = dataset
        self.size = size
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        strange = [info for info in infos if np.size(info['gt_label']) != 1]
        if strange:
            raise ValueError(
                f'gt_label={strange[0]["gt_label"]} of {strange[0].get("img_path")!r} is not one '
                'class; images with several labels cannot be sources'
            )
        self.labels = np.array([int(info['gt_label']) for info in infos])
        self.classes = tuple(dataset.metainfo.get('classes') or map(str, sorted(set(self.labels))))
        strange = [i for i, label in enumerate(self.labels) if not 0 <= label < len(self.classes)]
        if strange:
            raise ValueError(
                f'gt_label={self.labels[strange[0]]} of {infos[strange[0]].get("img_path")!r} is '
                f'none of the {len(self.classes)} classes {self.classes}'
            )
        self._memory = SourceMemory(self._read, len(infos))
        self._name = object()  # what is remembered by it shall not keep the set alive
        background = dataset.metainfo.get('background', ())
        self._masked = masked
        # Of what has no mask, a class without an object keeps nothing and any other everything.
        self._all_kept = [self.classes[label] not in background for label in self.labels]
        without = [
            i for i, info in enumerate(infos) if self._all_kept[i] and not info.get('mask_path')
        ]
        if without and masked:
            raise ValueError(
                f'{len(without)} of {len(infos)} data infos of {type(dataset).__name__} have no '
                f"'mask_path' (the first is number {without[0]}, "
                f'{infos[without[0]].get("img_path")!r}); an inpainting generator keeps the '
                'foreground and needs masks of it (`mmgap masks` makes them)'
            )
        self.groups = [info.get('group') for info in infos]
        self._loader = image_loader(dataset)
        empty = [name for i, name in enumerate(self.classes) if not (self.labels == i).any()]
        if empty:
            raise ValueError(f'no source images of class {", ".join(empty)} in {len(infos)} infos')

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self, index: int) -> str | None:
        """What is in the files of a source; None where one is no local file."""
        return digest_of(self.dataset.get_data_info(index))

    def stored_depth(self, condition: Condition, i: int) -> None:
        """A pool keeps no depth of these."""

    def of_class(self, label: int | None) -> np.ndarray:
        """Indices of the sources of one class, or of all when ``label`` is None."""
        return np.arange(len(self)) if label is None else np.flatnonzero(self.labels == label)

    def load(self, indices: Sequence[int]) -> Condition:
        """Read sources, or take them from memory.

        Raises:
            ValueError: If a file cannot be read, or a mask may mean several things, has another
                size than its image, or covers nothing or everything of what is left after the
                crop; names the file.
        """
        images, masks = zip(*(self._memory(int(i)) for i in indices), strict=True)
        return Condition(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.stack(masks))[:, None],
            torch.as_tensor(self.labels[list(indices)], dtype=torch.int64),
            [int(i) for i in indices],
            owner=self._name,
        )

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read sources that will be loaded, while other work goes on."""
        self._memory.prefetch(indices)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.dataset.get_data_info(index)
        image_path, mask_path = info['img_path'], info.get('mask_path')
        height, width = self.size
        image = Image.fromarray(read_image(info, self._loader))
        if mask_path is None:
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
            return np.array(image), np.full(self.size, self._all_kept[index])
        mask = Image.fromarray(read_mask(mask_path)).convert('L')
        if mask.size != image.size:
            raise ValueError(
                f'mask {mask_path} is {mask.size[0]}x{mask.size[1]}, its image {image_path} is '
                f'{image.size[0]}x{image.size[1]}; they must be of one size'
            )
        centring = around_object(mask, width / height)
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS, 0, centring)
        mask = ImageOps.fit(mask, (width, height), Image.Resampling.NEAREST, 0, centring)
        foreground = np.array(mask) > 127
        if self._masked and (not foreground.any() or foreground.all()):
            what = 'covers the whole image' if foreground.all() else 'has no foreground'
            raise ValueError(
                f'mask {mask_path} {what} after the resize to {height}x{width}: there would be '
                f'{"nothing to generate" if foreground.all() else "no object to keep"}. Draw it '
                f'{"tighter" if foreground.all() else "larger"}, or take the image out'
            )
        return np.array(image), foreground


def around_object(mask: Image.Image, ratio: float) -> tuple[float, float]:
    """Where to crop so that most of the object stays: ``centering`` of :func:`PIL.ImageOps.fit`.

    Args:
        mask: 8 bit, object bright.
        ratio: Width of the crop over its height.
    """
    foreground = np.array(mask) > 127
    height, width = foreground.shape
    crop = (min(width, round(height * ratio)), min(height, round(width / ratio)))
    return _best(foreground.sum(axis=0), crop[0]), _best(foreground.sum(axis=1), crop[1])


def _best(counts: np.ndarray, length: int) -> float:
    """Of the windows with the largest sum the middle one; 0 is the first place, 1 the last."""
    sums = np.convolve(counts, np.ones(max(1, length)), 'valid')
    places = np.flatnonzero(sums == sums.max())
    return (
        float(places[len(places) // 2] / max(1, len(sums) - 1)) if len(places) < len(sums) else 0.5
    )
