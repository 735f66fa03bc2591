# SPDX-License-Identifier: Apache-2.0
"""Images with depth maps as sources, read as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from mmgap.images import UNREADABLE, described, image_loader, read_image
from mmgap.sources.condition import Condition, digest_of
from mmgap.sources.memory import SourceMemory
from mmgap.wrappers import innermost

# Metres. A median outside of it is taken for a wrong unit.
PLAUSIBLE = (0.05, 500.0)


class DepthSourceSet:
    """The images of a depth dataset with their depth maps, as conditions of a generator.

    Image and depth go through the same resize and centre crop; depth is not interpolated. All
    sources are of one class, ``scene``.

    Args:
        dataset: Any dataset with MMEngine's ``get_data_info``, whose infos carry ``img_path``,
            ``depth_map_path`` and optionally ``group``, and whose pipeline has a transform that
            loads depth, such as MMSegmentation's ``LoadDepthAnnotation``.
        size: ``(height, width)`` of the conditions in pixels.

    Raises:
        ValueError: If infos carry no ``depth_map_path`` or the pipeline loads no depth.
    """

    classes: tuple[str, ...] = ('scene',)
    label_type = 'depth'

    def __init__(self, dataset: Any, size: tuple[int, int]) -> None:
        self.dataset = dataset
        self.size = size
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        without = [i for i, info in enumerate(infos) if not info.get('depth_map_path')]
        if without:
            raise ValueError(
                f'{len(without)} of {len(infos)} data infos of {type(dataset).__name__} have '
                f"no 'depth_map_path' (the first is number {without[0]}); a generator that draws "
                'for depth maps needs them'
            )
        loaders = {}
        for part in innermost(dataset):
            transforms = getattr(getattr(part, 'pipeline', None), 'transforms', ())
            found = [t for t in transforms if hasattr(t, 'depth_rescale_factor')]
            if not found:
                raise ValueError(
                    f'the pipeline of {type(part).__name__} loads no depth; it must have '
                    "dict(type='LoadDepthAnnotation', depth_rescale_factor=…)"
                )
            loaders[described(found[0])] = found[0]
        if len(loaders) > 1:
            raise ValueError(
                f'the parts of the training data load depth in different ways: {sorted(loaders)}; '
                'a pool has one unit: convert the depth maps to one, and give all parts the same '
                'loader'
            )
        (self._loader,) = loaders.values()
        self._image_loader = image_loader(dataset)
        backend = getattr(self._loader, 'decode_backend', 'cv2')
        if backend != 'cv2':
            raise ValueError(
                f'the pipeline of {type(dataset).__name__} loads depth with decode_backend='
                f"{backend!r}; a pool holds PNGs, which need 'cv2': convert the depth maps to "
                '16-bit PNGs'
            )
        self.labels = np.zeros(len(infos), dtype=int)
        self._memory = SourceMemory(self._read, len(infos))
        self._name = object()  # what is remembered by it shall not keep the set alive
        self.groups = [info.get('group') for info in infos]

    @property
    def unit(self) -> float:
        """Metres that a 1 in a depth file stands for."""
        return float(self._loader.depth_rescale_factor)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self, index: int) -> str | None:
        """What is in the files of a source; None where one is no local file."""
        return digest_of(self.dataset.get_data_info(index))

    def stored_depth(self, condition: Condition, i: int) -> np.ndarray:
        """``(H, W)`` uint16: a depth map as its source's file has it, for a pool.

        Raises:
            ValueError: If it does not fit into 16 bits, or lies between whole units.
        """
        exact = (condition.truth[i, 0].double().cpu() / self.unit).numpy()
        units = exact.round()
        if np.abs(exact - units).max() > 0.05:  # a file of floats
            raise ValueError(
                f'source {condition.indices[i]} has depths between whole multiples of '
                f'{self.unit:g} m, which the 16-bit PNGs of a pool cannot hold; convert the depth '
                'maps to 16-bit PNGs, such as millimetres with depth_rescale_factor=1e-3'
            )
        if units.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f'source {condition.indices[i]} has depths of {units.max():.0f} times its unit of '
                f'{self.unit:g} m, which 16 bits cannot hold'
            )
        return units.astype(np.uint16)

    def of_class(self, label: int | None) -> np.ndarray:
        """Indices of the sources of one class, or of all when ``label`` is None."""
        return np.arange(len(self)) if label is None else np.flatnonzero(self.labels == label)

    def load(self, indices: Sequence[int]) -> Condition:
        """Read sources, or take them from memory.

        Raises:
            ValueError: If a depth map has another size than its image, is negative or NaN, knows no
                pixel, or is implausible in metres; names the file.
        """
        images, depths = zip(*(self._memory(int(i)) for i in indices), strict=True)
        depth = torch.from_numpy(np.stack(depths))[:, None]
        return Condition(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            depth > 0,
            torch.zeros(len(depth), dtype=torch.int64),
            [int(i) for i in indices],
            depth,
            owner=self._name,
        )

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read sources that will be loaded, while other work goes on."""
        self._memory.prefetch(indices)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.dataset.get_data_info(index)
        image = Image.fromarray(read_image(info, self._image_loader))
        path = info['depth_map_path']
        try:
            loaded = self._loader(dict(info, seg_fields=[]))
        except FileNotFoundError:
            raise
        except (*UNREADABLE, AttributeError) as error:  # the toolbox's on what OpenCV cannot read
            raise ValueError(f'depth map {path} cannot be read: {error}') from error
        depth = np.asarray(loaded['gt_depth_map'], np.float32)
        if depth.ndim != 2:
            raise ValueError(
                f'depth map {path} must have one channel, it is read with the shape {depth.shape}; '
                'save it as grey PNG of 16 bits'
            )
        if depth.shape != image.size[::-1]:
            raise ValueError(
                f'depth map {path} is {depth.shape[1]}x{depth.shape[0]}, its image '
                f'{info["img_path"]} is {image.size[0]}x{image.size[1]}; they must be of one size'
            )
        height, width = self.size
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        fitted = ImageOps.fit(Image.fromarray(depth), (width, height), Image.Resampling.NEAREST)
        return np.array(image), check_depth(np.array(fitted), path, self.unit)


def check_depth(depth: np.ndarray, path: str, unit: float) -> np.ndarray:
    """The same map, if it can be one.

    Args:
        depth: ``(H, W)`` in metres, 0 where unknown.
        path: Where it is from, for messages.
        unit: Metres that a 1 in its file was taken for, for messages.

    Raises:
        ValueError: If it is negative, NaN or infinite somewhere, knows no pixel, or its median is
            no plausible distance in metres.
    """
    if not np.isfinite(depth).all() or (depth < 0).any():
        raise ValueError(f'depth map {path} has negative, NaN or infinite values; 0 is unknown')
    if not (depth > 0).any():
        raise ValueError(f'depth map {path} knows no pixel: after the crop all are 0')
    median = float(np.median(depth[depth > 0]))
    if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        raise ValueError(
            f'the median of depth map {path} is {median:.4g} m, which no camera sees; a 1 in the '
            f'file was taken for {unit:g} m: correct depth_rescale_factor (1e-3 for millimetres)'
        )
    return depth
