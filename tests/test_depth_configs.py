# SPDX-License-Identifier: Apache-2.0
"""The depth configs from end to end, on miniatures and with tiny weights of their classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmgap.compat import allow_checkpoint_history
from mmgap.pool import SamplePool
from mmgap.prompts import load_prompts
from tests.miniature import draw_nyu, draw_taskonomy

ROOT = Path(__file__).parents[1]
RESNET = dict(base_channels=8, stem_channels=8, init_cfg=None, depth=18)
# What makes each model tiny; nothing else of it is changed.
TINY = {
    'gap_unet_taskonomy-depth': dict(
        backbone=dict(base_channels=4), decode_head=dict(in_channels=4, channels=4)
    ),
    'gap_dpt-vit-b16_nyu-depth': dict(
        backbone=dict(
            img_size=(32, 32),
            embed_dims=16,
            num_layers=4,
            num_heads=2,
            out_indices=(0, 1, 2, 3),
            init_cfg=None,
        ),
        decode_head=dict(
            in_channels=(16,) * 4,
            channels=8,
            embed_dims=16,
            post_process_channels=[4, 8, 16, 16],
        ),
    ),
    'gap_resnet50_nyu-depth': dict(
        backbone=RESNET, decode_head=dict(in_channels=[8, 16, 32, 64], channels=8)
    ),
    'gap_resnet18_toydepth': dict(
        backbone=dict(base_channels=8, stem_channels=8, init_cfg=None),
        decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
    ),
}


def miniature(name: str, folder: Path, weights: Path, controlnet: Path) -> Config:
    """A config with small numbers and a drawn miniature of its data."""
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    data = folder / 'data'
    if 'taskonomy' in name:
        draw_taskonomy(data, buildings=('allensville', 'collierville', 'ihlen'), views=4, size=48)
    elif 'nyu' in name:
        draw_nyu(data, size=(640, 480) if 'resnet' in name else (64, 48))
    config.merge_from_dict(
        {
            'work_dir': str(folder / 'work'),
            'model': TINY[name],
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
        }
    )
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        if 'data_root' in loader.dataset:
            loader.dataset.data_root = str(data)
        if 'buildings' in loader.dataset:
            loader.dataset.buildings = loader.dataset.buildings[:1]
        if name.endswith('toydepth'):
            loader.dataset.size = 8
    settings = config.custom_hooks[0]
    settings.search.update(
        steps=2, prompts_per_class=2, images_per_prompt=2, batch_size=4, holdout=2
    )
    if not name.endswith('toydepth'):  # which has tiny weights anyway
        settings.search.update(tokens=[1, 8])
        settings.generator.update(
            model=str(weights), controlnet=str(controlnet), size=16, negative_prompt='a b'
        )
    settings.synthesis.update(num_inference_steps=2)
    settings.update(start=1, budget=6)
    return config


@pytest.mark.smoke
@pytest.mark.parametrize('name', TINY)
def test_config(name, tmp_path, tiny_sd, tiny_controlnet):
    config = miniature(name, tmp_path, tiny_sd, tiny_controlnet)
    if 'dpt' in name:  # 480 pixels take minutes here
        for part in ('train', 'val', 'test'):
            config[f'{part}_dataloader'].dataset.pipeline = [
                step
                if step['type'] not in ('Resize', 'RandomCrop')
                else dict(type='Resize', scale=(32, 32))
                for step in config[f'{part}_dataloader'].dataset.pipeline
            ]
        config.model.data_preprocessor.size = (32, 32)
        config.custom_hooks[0].target = dict(input_size=(32, 32))
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


@pytest.mark.slow
def test_methods_of_the_benchmark(tmp_path, tiny_sd, tiny_controlnet, monkeypatch):
    """Each fragment makes its images, and trains the last layer on them."""
    from mmgap.benchmark.cells import Benchmark

    config = miniature('gap_unet_taskonomy-depth', tmp_path, tiny_sd, tiny_controlnet)
    data = config.train_dataloader.dataset
    methods = config.benchmark.methods
    step = methods.style.train['train_dataloader.dataset.pipeline'][3]
    step.images.update(data_root=data.data_root, buildings=data.buildings)
    methods.real.dataset.buildings = config.val_dataloader.dataset.buildings
    config.benchmark.update(steps=1, autocast=None)
    init_default_scope('mmseg')
    allow_checkpoint_history()
    benchmark = Benchmark(config, tmp_path / 'out', [4])
    seen = {}
    for method in methods:
        cell = benchmark.cell(method, 4, 0, 'last')
        assert cell['worst_group'] == cell['abs_rel']['all'] > 0
        if benchmark.makes_images(method):
            samples = SamplePool(benchmark.pool(method, 0)).samples
            seen[method] = samples[0].prompt_id.split('@')[-1], samples[0].generator
    assert list(methods)[0] == 'none' and len(seen) == 8
    apart = ('agnostic', 'random', 'prompts', 'guided', 'ap-sdedit', 'real')
    assert len({seen[method] for method in apart}) == 6  # the others stop where they start


@pytest.mark.parametrize('name', [name for name in TINY if 'toydepth' not in name])
def test_the_last_layer_is_one(name, tmp_path, tiny_sd, tiny_controlnet):
    config = miniature(name, tmp_path, tiny_sd, tiny_controlnet)
    init_default_scope('mmseg')
    names = [n for n, _ in MODELS.build(config.model).named_parameters()]
    last = [n for n in names if n.startswith(config.benchmark.last_layer)]
    assert last == ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
