# SPDX-License-Identifier: Apache-2.0
"""ToyDepth and its file backend, read the way a stock pipeline reads them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from mmengine.fileio import get
from PIL import Image

from mmgap.toyworld import ToyDepth, render
from mmgap.toyworld.depth_splits import (
    CORRUPTIONS,
    DEPTH_SIZES,
    MAX_DEPTH,
    SHIFTS,
    corrupt,
    depth_record,
)
from mmgap.toyworld.splits import SIZES, record


def read(path):
    return np.array(Image.open(io.BytesIO(get(path))))


def test_depth_is_the_renderers_in_millimetres_and_unknown_far_away():
    for index in range(6):
        info = ToyDepth('test_night').get_data_info(index)
        drawn = render(depth_record('test_night', index).scene)
        np.testing.assert_array_equal(read(info['img_path']), drawn.image)
        depth = read(info['depth_map_path'])
        assert depth.shape == (64, 64)
        known = depth > 0
        np.testing.assert_array_equal(known, drawn.depth < MAX_DEPTH)
        np.testing.assert_allclose(depth[known] / 1000, drawn.depth[known], atol=5.1e-4)


def test_stock_transforms_give_metres():
    from mmgap.compat import allow_mmcv_without_ops

    allow_mmcv_without_ops()
    import mmseg.datasets.transforms  # noqa: F401
    from mmseg.utils import register_all_modules

    register_all_modules()
    load = dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3)
    keys = ('img_path', 'ori_shape', 'img_shape', 'group')
    pack = dict(type='PackSegInputs', meta_keys=keys)
    pipeline = [dict(type='LoadImageFromFile'), load, pack]
    sample = ToyDepth('test', size=4, pipeline=pipeline)[2]
    assert tuple(sample['inputs'].shape) == (3, 64, 64)
    truth = render(depth_record('test_fog', 0).scene).depth
    depth = sample['data_samples'].gt_depth_map.data
    np.testing.assert_allclose(depth[0], np.where(truth < MAX_DEPTH, truth, 0), atol=5.1e-4)
    assert sample['data_samples'].group == list(SHIFTS).index('fog')


def test_shifts():
    for split in ('train', 'test_clear'):
        assert {(s.time, s.weather) for s in scenes(split)} == {('day', 'clear')}
    assert {(s.time, s.weather) for s in scenes('test_night')} == {('night', 'clear')}
    assert {(s.time, s.weather) for s in scenes('test_fog')} == {('day', 'fog')}
    infos = [ToyDepth('test').get_data_info(i) for i in range(8)]
    names = [info['img_path'].split('/')[2] for info in infos]
    assert names == 2 * [f'test_{shift}' for shift in SHIFTS]
    assert [info['group'] for info in infos] == 2 * [0, 1, 2, 3]
    used = {depth_record('test_corruptions', i).corruption for i in range(15)}
    assert used == set(CORRUPTIONS)


def scenes(split):
    return [depth_record(split, i).scene for i in range(40)]


def test_no_scene_is_in_two_splits():
    seeds = [depth_record(s, i).scene.seed for s in DEPTH_SIZES for i in range(DEPTH_SIZES[s])]
    seeds += [record(split, i).scene.seed for split in SIZES for i in range(SIZES[split])]
    assert len(set(seeds)) == sum(DEPTH_SIZES.values()) + sum(SIZES.values())
    # The toy models learn from scenes between; see tools/toyworld/common.py.
    assert not any(10**9 <= seed < 2 * 10**9 for seed in seeds)


def test_guidance_holds_a_picture_and_nothing_else():
    infos = [ToyDepth('guidance').get_data_info(i) for i in range(4)]
    assert all(set(info) == {'img_path', 'sample_idx'} for info in infos)
    assert {s.time for s in scenes('guidance')} == {'day', 'night'}


def test_corruptions_repeat_and_leave_numpy_alone():
    image = render(depth_record('train', 0).scene).image
    for name in CORRUPTIONS:
        np.random.seed(3)
        before = np.random.get_state()[1].copy()
        first, again, other = (corrupt(image, name, seed=seed) for seed in (5, 5, 6))
        np.testing.assert_array_equal(first, again)
        assert (first != image).any() and first.dtype == np.uint8
        assert (np.random.get_state()[1] == before).all()
        if name in ('gaussian_noise', 'impulse_noise', 'glass_blur', 'elastic_transform'):
            assert (first != other).any()


def test_bad_input():
    with pytest.raises(ValueError, match="split='test_rain' is unknown; use one of"):
        ToyDepth('test_rain')
    with pytest.raises(ValueError, match='size=0 must be positive, or None for 300 records'):
        ToyDepth('val', size=0)
    with pytest.raises(FileNotFoundError, match='toydepth://SPLIT/000123.png or …_depth.png'):
        get('toydepth://train/000001_mask.png')
