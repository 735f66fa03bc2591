# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope

from mmgap.datasets import SyntheticDataset
from mmgap.pool import SamplePool
from mmgap.registry import DATASETS
from tests.support.pools import fill_pool


def test_samples_and_pipeline(tmp_path):
    pool = fill_pool(tmp_path, 5)
    config = dict(
        type='mmgap.SyntheticDataset', pool=str(tmp_path), metainfo=dict(classes=('a', 'b'))
    )
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = DATASETS.build(dict(config, pipeline=pipeline))
    assert len(dataset) == 5 and dataset.metainfo['classes'] == ('a', 'b')
    assert dataset.get_data_info(3) == dict(
        img_path=str(pool.path(pool.samples[3])),
        gt_label=1,
        prompt_id='p1@0',
        source_index=pool.samples[3].source_index,
        round=0,
        sample_idx=3,
    )
    packed = dataset[3]
    assert packed['inputs'].shape == (3, 6, 5) and packed['data_samples'].gt_label.item() == 1
    assert len(SyntheticDataset(str(tmp_path), budget=2)) == 2


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no samples in manifest.jsonl'):
        SyntheticDataset(str(tmp_path / 'none'))
    fill_pool(tmp_path, 3)
    with pytest.raises(ValueError, match='budget=4, but .* has 3 samples'):
        SyntheticDataset(str(tmp_path), budget=4)
    with pytest.raises(ValueError, match='budget must be at least 1, got 0'):
        SyntheticDataset(str(tmp_path), budget=0)
    SamplePool(tmp_path).path(SamplePool(tmp_path).samples[1]).unlink()
    with pytest.raises(ValueError, match='000001.png, which is missing'):
        SyntheticDataset(str(tmp_path))
