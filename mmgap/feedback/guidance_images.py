# SPDX-License-Identifier: Apache-2.0
"""A few unlabelled images of the target distribution."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get as read_bytes
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from PIL import Image, ImageOps
from torch import Tensor

from mmgap.images import SUFFIXES, read_image


class GuidanceImages:
    """Unlabelled images, from a folder or from a dataset's guidance split.

    A labelled split is refused: images that a model is evaluated on must not guide the search.

    Args:
        images: A folder (searched with its subfolders), or the config of a dataset whose data
            infos carry ``img_path`` and no ``gt_label``, e.g.
            ``dict(type='mmgap.ToyBirds', split='guidance')``.
        limit: Take only the first so many, by name or in the dataset's order.
        skip_corrupt: Leave images out that cannot be read, with a warning, instead of failing.

    Attributes:
        paths: Paths of the images.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there are no images, one cannot be read (names it), or the dataset is
            labelled.
    """

    def __init__(
        self,
        images: str | Mapping[str, Any],
        limit: int | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f'limit must be at least 1, got {limit}')
        found = _in_dataset(images) if isinstance(images, Mapping) else _in_folder(images)
        self.paths: list[str] = []
        self._data: list[bytes] = []
        for path in found[:limit]:
            data = read_bytes(path)
            try:
                read_image(str(path), data=data)
            except ValueError as error:
                if not skip_corrupt:
                    raise ValueError(
                        f'guidance {error}; take it away, or set skip_corrupt=True'
                    ) from error
                MMLogger.get_current_instance().warning(f'[gap] guidance {error}; it is left out')
                continue
            self.paths.append(str(path))
            self._data.append(data)
        if not self.paths:
            raise ValueError(f'images={images!r} holds no image that can be read')

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, size: tuple[int, int] | None = None) -> Tensor:
        """One image.

        Args:
            index: Its number.
            size: ``(height, width)`` that it is resized and centre-cropped to.

        Returns:
            ``(3, H, W)`` RGB in [0, 1].
        """
        image = Image.fromarray(read_image(self.paths[index], data=self._data[index]))
        if size is not None:
            image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def fingerprint(self) -> str:
        """Sixteen hex digits that name the images' contents, in their order."""
        digest = hashlib.sha256()
        for data in self._data:
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()[:16]


def _in_dataset(config: Mapping[str, Any]) -> list[str]:
    dataset = DATASETS.build(dict(config))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    if any({'gt_label', 'depth_map_path'} & set(info) for info in infos):
        raise ValueError(
            f'{dict(config)} is a labelled split; images that a model may be evaluated on must not '
            "guide the search. Use an unlabelled split (split='guidance'), or a folder"
        )
    return [info['img_path'] for info in infos]


def _in_folder(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'images={folder!r} is no folder')
    found = [
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    if not found:
        raise ValueError(f'images={folder!r} holds no image ({", ".join(SUFFIXES)})')
    return sorted(found)
