# SPDX-License-Identifier: Apache-2.0
"""Drawn images in a folder, with the part of MMEngine's dataset that sources need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


class DrawnDataset:
    """Noise images with square masks."""

    def __init__(self, folder: Path, count: int = 12, size: int = 20, classes: int = 2) -> None:
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        self.infos = []
        for i in range(count):
            image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            mask = np.zeros((size, size), np.uint8)
            top, left = rng.integers(2, size // 2, 2)
            mask[top : top + size // 3, left : left + size // 3] = 255
            Image.fromarray(image).save(folder / f'{i}.png')
            Image.fromarray(mask).save(folder / f'{i}_mask.png')
            self.infos.append(
                dict(
                    img_path=str(folder / f'{i}.png'),
                    mask_path=str(folder / f'{i}_mask.png'),
                    gt_label=i % classes,
                    group=None,
                )
            )
        self.metainfo = dict(classes=tuple('ab'[:classes]) if classes <= 2 else tuple('abc'))

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict:
        return dict(self.infos[index])


class DrawnDepth:
    """Images with depth maps in a folder, read by MMSegmentation's own transform."""

    def __init__(self, folder: Path, count: int = 6, size: int = 20) -> None:
        from mmcv.transforms import Compose

        from mmgap.compat import allow_mmcv_without_ops

        allow_mmcv_without_ops()
        from mmseg.datasets.transforms import LoadDepthAnnotation

        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        self.infos = []
        for i in range(count):
            image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            depth = rng.integers(500, 9000, (size, size)).astype(np.uint16)
            depth[:3] = 0
            Image.fromarray(image).save(folder / f'{i}.png')
            Image.fromarray(depth).save(folder / f'{i}_depth.png')
            self.infos.append(
                dict(
                    img_path=str(folder / f'{i}.png'),
                    depth_map_path=str(folder / f'{i}_depth.png'),
                )
            )
        self.metainfo = dict(classes=())
        self.pipeline = Compose([LoadDepthAnnotation(depth_rescale_factor=1e-3)])

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict:
        return dict(self.infos[index])
