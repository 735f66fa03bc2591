# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests. Nothing here may reach the network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', MPLBACKEND='agg')

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(2)


class DrawnDataset:
    """Images with masks in a folder, with the part of MMEngine's dataset that sources need."""

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


@pytest.fixture(scope='session')
def tiny_sd(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion folder with a UNet of 4 input channels."""
    from tests.tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp('sd4'))


@pytest.fixture(scope='session')
def tiny_sd_9(tmp_path_factory) -> Path:
    """The same with 9 input channels."""
    from tests.tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp('sd9'), in_channels=9)


@pytest.fixture
def drawn(tmp_path) -> DrawnDataset:
    """Twelve noise images with square masks, two classes."""
    return DrawnDataset(tmp_path / 'drawn')


@pytest.fixture(scope='session')
def tiny_controlnet(tmp_path_factory) -> Path:
    """A depth ControlNet for ``tiny_sd``."""
    from tests.tiny import save_tiny_controlnet

    return save_tiny_controlnet(tmp_path_factory.mktemp('controlnet'))


@pytest.fixture(scope='session')
def tiny_xl(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion XL folder with a UNet of 4 input channels."""
    from tests.tiny import save_tiny_xl

    return save_tiny_xl(tmp_path_factory.mktemp('xl'))


@pytest.fixture
def drawn_depth(tmp_path) -> DrawnDepth:
    """Six noise images with depth maps in millimetres, unknown in their first rows."""
    return DrawnDepth(tmp_path / 'drawn_depth')
