# SPDX-License-Identifier: Apache-2.0
"""The depth configs from end to end, on miniatures and with tiny weights of their classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmgap.pool import SamplePool
from mmgap.prompts import load_prompts
from tests.support.configs import TINY_DEPTH, depth_config

ROOT = Path(__file__).parents[1]


@pytest.mark.smoke
@pytest.mark.parametrize('name', TINY_DEPTH)
def test_config(name, tmp_path, tiny_sd, tiny_controlnet):
    config = depth_config(name, tmp_path, tiny_sd, tiny_controlnet)
    if 'dpt' in name:  # 480 pixels take minutes here
        for part in ('train', 'val', 'test'):
            config[f'{part}_dataloader'].dataset.pipeline = [
                step
                if step['type'] not in ('Resize', 'RandomCrop')
                else dict(type='Resize', scale=(32, 32))
                for step in config[f'{part}_dataloader'].dataset.pipeline
            ]
        config.model.data_preprocessor.size = (32, 32)
        config.custom_hooks[0].input = dict(input_size=(32, 32))
    init_default_scope('mmseg')
    Runner.from_cfg(config).train()
    gap = tmp_path / 'work' / 'gap'
    summary = json.loads((gap / 'summary.json').read_text())
    (first,) = summary['rounds']
    assert first['images'] == 6
    assert summary['after']['measure'] == 'abs_rel'
    prompts = {prompt.id: prompt for prompt in load_prompts(gap / 'prompts')}
    tokens = {4} if name.endswith('toydepth') else {1, 8}
    assert {len(p.embeddings) for p in prompts.values()} == tokens
    pool = SamplePool(gap / 'pool')
    unit = 1 / 512 if 'taskonomy' in name else 1e-3
    assert all(sample.depth_unit == pytest.approx(unit) for sample in pool.samples)
    if name.endswith('toydepth'):
        groups = summary['after']['groups']
        assert set(groups) == {'clear', 'night', 'fog', 'corruptions'}
        assert summary['after']['worst_group'] == max(groups.values())


@pytest.mark.parametrize(
    'name, file',
    [
        ('ap_unet_taskonomy-depth', 'taskonomy-depth_unet'),
        ('ap_dpt-vit-b16_nyu-depth', 'nyu-depth_dpt-vit-b16'),
        ('ap_resnet50_nyu-depth', 'nyu-depth_resnet50'),
    ],
)
def test_the_last_layer_is_one(name, file, tmp_path, tiny_sd, tiny_controlnet):
    config = depth_config(name, tmp_path, tiny_sd, tiny_controlnet, f'benchmark/{file}')
    init_default_scope('mmseg')
    names = [n for n, _ in MODELS.build(config.model).named_parameters()]
    last = [n for n in names if n.startswith(config.benchmark.last_layer)]
    assert last == ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
