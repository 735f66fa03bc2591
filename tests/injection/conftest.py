# SPDX-License-Identifier: Apache-2.0
"""Real and generated images whose class is in their colour, and a pipeline that draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from PIL import Image

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.pool import SamplePool
from tests.support.pools import ABOUT

SIZE = 24


def picture(label: int, seed: int) -> np.ndarray:
    """Noise that is brighter in red or in blue."""
    pixels = np.random.default_rng(seed).integers(0, 160, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 2 * label] += 95
    return pixels


class Pictures(BaseDataset):
    """Two classes in turn."""

    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self) -> list[dict]:
        paths = sorted(Path(self.ann_file).glob('*.png'))
        return [dict(img_path=str(path), gt_label=i % 2) for i, path in enumerate(paths)]


@pytest.fixture(scope='session')
def pipeline() -> list[dict]:
    import mmpretrain.datasets  # noqa: F401

    flip = dict(type='mmpretrain.RandomFlip', prob=0.5)
    jitter = dict(type='mmpretrain.ColorJitter', brightness=0.4)
    return [
        dict(type='mmpretrain.LoadImageFromFile'),
        flip,
        jitter,
        dict(type='mmpretrain.PackInputs'),
    ]


def pictures(folder: Path, count: int, pipeline: list[dict]) -> BaseDataset:
    for i in range(count):
        Image.fromarray(picture(i % 2, i)).save(folder / f'{i:03d}.png')
    return Pictures(ann_file=str(folder), pipeline=pipeline)


@pytest.fixture(scope='session')
def real(tmp_path_factory, pipeline) -> BaseDataset:
    """Twenty-four real images."""
    return pictures(tmp_path_factory.mktemp('real'), 24, pipeline)


@pytest.fixture(scope='session')
def many(tmp_path_factory, pipeline) -> BaseDataset:
    """Eighty of them."""
    return pictures(tmp_path_factory.mktemp('many'), 80, pipeline)


@pytest.fixture(scope='session')
def images(tmp_path_factory, pipeline) -> SyntheticDataset:
    """Fourteen generated ones: ten of a class, eight of these of one prompt."""
    pool = SamplePool(tmp_path_factory.mktemp('pool'))
    for i, (label, prompt) in enumerate([(0, 'p')] * 8 + [(0, 'q')] * 2 + [(1, 'r')] * 4):
        about = dict(ABOUT, label=label, prompt_id=f'{prompt}@0', seed=i, source_index=i)
        pool.append(picture(label, 100 + i), **about)
    return SyntheticDataset(str(pool.folder), pipeline=pipeline)
