# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmgap.datasets import LoadDepth, Taskonomy
from mmgap.sources import DepthSourceSet
from tests.support.miniature import draw_taskonomy


@pytest.mark.parametrize('between', ['', 'taskonomy'])
def test_layouts(between, tmp_path):
    draw_taskonomy(tmp_path, buildings=('allensville', 'beechwood'), views=2, between=between)
    dataset = Taskonomy(str(tmp_path), pipeline=[LoadDepth(1 / 512, unknown=65535)])
    assert [dataset.get_data_info(i)['building'] for i in range(4)] == [
        *['allensville'] * 2,
        *['beechwood'] * 2,
    ]
    depth = dataset[3]['gt_depth_map']
    info = dataset.get_data_info(3)
    stored = np.array(Image.open(info['depth_map_path']))
    mask = np.array(Image.open(info['depth_mask_path']))
    known = (stored != 65535) & (mask > 127)
    assert depth.dtype == np.float32 and 0 < known.mean() < 1
    np.testing.assert_array_equal(depth > 0, known)
    np.testing.assert_allclose(depth[known], stored[known] / 512, rtol=1e-6)
    assert len(Taskonomy(str(tmp_path), buildings=['beechwood'])) == 2


def test_sources_know_the_holes(tmp_path):
    draw_taskonomy(tmp_path, buildings=('allensville',), views=1)
    dataset = Taskonomy(str(tmp_path), pipeline=[LoadDepth(1 / 512, unknown=65535)])
    condition = DepthSourceSet(dataset, (16, 16)).load([0])
    assert (condition.depth == 0).any() and condition.depth.max() < 65535 / 512


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no folder rgb'):
        Taskonomy(str(tmp_path))
    draw_taskonomy(tmp_path, buildings=('allensville',), views=2)
    with pytest.raises(FileNotFoundError, match=r"no buildings \['nowhere'\]"):
        Taskonomy(str(tmp_path), buildings=['allensville', 'nowhere'])
    info = Taskonomy(str(tmp_path)).get_data_info(1)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(info['depth_mask_path'])
    load = LoadDepth(1 / 512)
    with pytest.raises(ValueError, match='depth mask .*view_0.* is 4x3, its depth map .* is 20x20'):
        load(info)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(info['depth_map_path'])
    with pytest.raises(ValueError, match='zbuffer.png is no image of one channel'):
        load(info)
    (
        tmp_path / 'depth_zbuffer' / 'allensville' / 'point_0_view_0_domain_depth_zbuffer.png'
    ).unlink()
    with pytest.raises(FileNotFoundError, match='point_0_view_0_domain_rgb.png has no depth map'):
        Taskonomy(str(tmp_path))
    with pytest.raises(ValueError, match='depth_rescale_factor must be positive, got 0'):
        LoadDepth(0)


def test_the_config_names_what_can_be_downloaded():
    config = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/datasets/taskonomy.py')
    assert len(config.train_buildings) == 24 and 'woodbine' not in config.train_buildings
