# SPDX-License-Identifier: Apache-2.0
"""Depth maps as conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmgap.generators import InverseDepth, LinearDepth
from mmgap.sources import DepthSourceSet


def test_sources_are_read_in_metres_and_cropped_alike(drawn_depth):
    sources = DepthSourceSet(drawn_depth, (20, 10))
    condition = sources.load([4, 1])
    stored = np.array(Image.open(drawn_depth.infos[4]['depth_map_path']))[:, 5:15] / 1000
    image = np.array(Image.open(drawn_depth.infos[4]['img_path']))[:, 5:15]
    assert condition.depth.shape == (2, 1, 20, 10) and condition.depth.dtype == torch.float32
    np.testing.assert_allclose(condition.depth[0, 0].numpy(), stored, rtol=1e-6)
    np.testing.assert_array_equal(condition.images[0].permute(1, 2, 0).numpy(), image)
    assert torch.equal(condition.masks, condition.depth > 0)
    assert not condition.masks[:, :, :3].any() and condition.masks[:, :, 3:].all()
    assert condition.labels.tolist() == [0, 0] and condition.indices == [4, 1]
    assert sources.unit == 1e-3 and sources.of_class(0).tolist() == list(range(6))


def test_depth_is_not_interpolated(drawn_depth):
    known = np.array(Image.open(drawn_depth.infos[0]['depth_map_path'])).astype(np.float32) * 1e-3
    condition = DepthSourceSet(drawn_depth, (33, 33)).load([0])
    assert set(np.unique(condition.depth.numpy())) <= set(np.unique(known))


def test_inverse_depth_in_numpy():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 20, (3, 1, 5, 4))
    depth[rng.random(depth.shape) < 0.3] = 0
    shown = InverseDepth()(torch.from_numpy(depth)).numpy()
    for one, map_ in zip(shown, depth, strict=True):
        inverse = np.where(map_ > 0, 1 / np.where(map_ > 0, map_, 1), 0)
        low, high = inverse[map_ > 0].min(), inverse.max()
        expected = np.where(map_ > 0, (inverse - low) / (high - low), 0)
        np.testing.assert_allclose(one, expected.repeat(3, axis=0), atol=1e-12)
    flat = InverseDepth()(torch.full((1, 1, 4, 4), 3.0))
    assert torch.isfinite(flat).all() and flat.abs().max() == 0
    metres = LinearDepth()(torch.tensor([0.0, 2.0, 10.0, 4.0]).view(1, 1, 1, 4))
    assert metres[0, :, 0].tolist() == [[0.0, 1.0, 0.0, 0.75]] * 3


def spoil(dataset, depth):
    Image.fromarray(depth).save(dataset.infos[2]['depth_map_path'])


@pytest.mark.parametrize(
    'depth, words',
    [
        (np.zeros((20, 20), np.uint16), 'knows no pixel: after the crop all are 0'),
        (np.full((18, 20), 900, np.uint16), r'is 20x18, its image .*2.png is 20x20'),
        (np.full((20, 20), 3, np.uint16), r'is 0.003 m, .* was taken for 0.001 m: correct depth_r'),
    ],
)
def test_bad_depth_names_the_file(depth, words, drawn_depth):
    spoil(drawn_depth, depth)
    sources = DepthSourceSet(drawn_depth, (20, 20))
    with pytest.raises(ValueError, match='2_depth.png.*' + words):
        sources.load([0, 2])


def test_wrong_unit_nan_and_missing_parts(drawn_depth):
    drawn_depth.pipeline.transforms[0].depth_rescale_factor = 1.0
    with pytest.raises(ValueError, match='a 1 in the file was taken for 1 m.*1e-3 for millimetres'):
        DepthSourceSet(drawn_depth, (20, 20)).load([0])
    drawn_depth.pipeline.transforms[0].depth_rescale_factor = float('nan')
    with pytest.raises(ValueError, match='has negative, NaN or infinite values'):
        DepthSourceSet(drawn_depth, (20, 20)).load([0])
    drawn_depth.pipeline.transforms[0].decode_backend = 'numpy'
    with pytest.raises(ValueError, match="decode_backend='numpy'; a pool holds PNGs"):
        DepthSourceSet(drawn_depth, (20, 20))
    drawn_depth.pipeline.transforms.clear()
    with pytest.raises(ValueError, match='the pipeline of DrawnDepth loads no depth'):
        DepthSourceSet(drawn_depth, (20, 20))
    del drawn_depth.infos[3]['depth_map_path']
    with pytest.raises(ValueError, match=r"1 of 6 data infos .* no 'depth_map_path' .* number 3"):
        DepthSourceSet(drawn_depth, (20, 20))


def test_depth_between_whole_units_fits_no_pool(drawn_depth):
    """A file of floats would be rounded to whole metres without a word."""
    sources = DepthSourceSet(drawn_depth, (20, 20))
    condition = sources.load([0])
    assert np.array_equal(
        sources.stored_depth(condition, 0),
        np.array(Image.open(drawn_depth.infos[0]['depth_map_path'])),
    )
    condition.depth += 0.0004
    with pytest.raises(ValueError, match='source 0 has depths between whole multiples of 0.001 m'):
        sources.stored_depth(condition, 0)
