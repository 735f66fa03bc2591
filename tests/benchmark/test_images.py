# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgap.benchmark.images import put_real
from mmgap.pool import SamplePool
from mmgap.sources import DepthSourceSet, SourceSet
from tests.support.datasets import DrawnDataset


def test_real_images_come_in_their_order_and_once(tmp_path, drawn):
    sources = SourceSet(drawn, (20, 20), masked=False)
    for count in (3, 5, 5):
        pool = SamplePool(tmp_path / 'pool')
        put_real(pool, sources, method='real', count=count, evaluation=[])
    samples = SamplePool(tmp_path / 'pool').samples
    assert [sample.source_index for sample in samples] == list(range(5))
    assert [sample.label for sample in samples] == [0, 1, 0, 1, 0]
    for sample, info in zip(samples, drawn.infos, strict=False):
        image = np.array(Image.open(pool.path(sample)))
        np.testing.assert_array_equal(image, np.array(Image.open(info['img_path'])))


def test_real_images_with_depth(tmp_path, drawn_depth):
    sources = DepthSourceSet(drawn_depth, (20, 20))
    pool = SamplePool(tmp_path / 'pool')
    put_real(pool, sources, method='real', count=2, evaluation=[])
    for sample, info in zip(pool.samples, drawn_depth.infos, strict=False):
        assert sample.depth_unit == sources.unit and sample.label == 0
        depth = np.array(Image.open(pool.depth_path(sample))) * sample.depth_unit
        truth = np.array(Image.open(info['depth_map_path'])) * 1e-3
        np.testing.assert_allclose(depth, truth, atol=1e-3)


def test_no_image_is_evaluated_on_and_there_are_enough(tmp_path, drawn):
    pool, sources = SamplePool(tmp_path / 'pool'), SourceSet(drawn, (16, 16), masked=False)
    other = DrawnDataset(tmp_path / 'other', count=3)
    with pytest.raises(ValueError, match="the dataset of 'mine' has 12 images, 13 are asked for"):
        put_real(pool, sources, method='mine', count=13, evaluation=[other])
    other.infos.append(drawn.infos[7])
    (tmp_path / 'link').symlink_to(Path(drawn.infos[7]['img_path']).parent)
    path = tmp_path / 'link' / Path(drawn.infos[7]['img_path']).name
    linked = dict(drawn.infos[7], img_path=str(path))
    for leaked in (drawn.infos[7], linked):
        other.infos[-1] = leaked
        words = r"'mine' would train on images .* evaluates on.*7\.png"
        with pytest.raises(ValueError, match=words):
            put_real(pool, sources, method='mine', count=2, evaluation=[other])
    assert len(pool) == 0
