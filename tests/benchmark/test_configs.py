# SPDX-License-Identifier: Apache-2.0
"""The methods of the shipped configs, on miniatures of their data and with tiny weights."""

from __future__ import annotations

import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmgap.benchmark.cells import Benchmark
from mmgap.compat import allow_checkpoint_history
from mmgap.pool import SamplePool
from mmgap.registry import TASK_UTILS
from tests.support.configs import classification_config, depth_config
from tests.support.miniature import convert_iwildcam, draw_iwildcam, draw_waterbirds


@pytest.mark.parametrize('name', ['waterbirds_resnet50', 'iwildcam_resnet50'])
def test_methods_that_search_nothing(name, tmp_path, tiny_sd):
    data = tmp_path / 'data'
    if 'iwildcam' in name:
        convert_iwildcam(draw_iwildcam(tmp_path / 'wilds', sequences=2), data)
    else:
        draw_waterbirds(data, per_group=2)
    config = classification_config(f'benchmark/{name}', data, tiny_sd, tmp_path / 'work')
    mix = config.benchmark.methods.style.train['train_dataloader.dataset.pipeline'][1]
    mix.images.update(data_root=str(data), num_samples=None)
    if 'iwildcam' in name:
        mix.images.pop('num_samples')
    benchmark = Benchmark(config, tmp_path / 'out', [8])
    assert len({benchmark.key(method) for method in benchmark.methods}) == len(benchmark.methods)
    init_default_scope('mmpretrain')
    for method in benchmark.methods.values():
        for term in method.feedback or ():
            TASK_UTILS.build(dict(term))
    samples = SamplePool(benchmark.pool('real', 0)).samples
    assert len(samples) == 8 and {sample.prompt_id for sample in samples} == {'real'}
    style = config.train_dataloader.dataset
    style.pipeline = config.benchmark.methods.style.train['train_dataloader.dataset.pipeline']
    assert DATASETS.build(style)[0]['inputs'].shape == (3, 224, 224)


@pytest.mark.slow  # 10 and 30 s: methods with a search each
@pytest.mark.parametrize('name', ['waterbirds_resnet50', 'iwildcam_resnet50'])
def test_methods_that_search(name, tmp_path, tiny_sd):
    """Each fragment finds its prompts and draws with them; no two methods have the same."""
    data = tmp_path / 'data'
    if 'iwildcam' in name:
        convert_iwildcam(draw_iwildcam(tmp_path / 'wilds', sequences=3), data)
    else:
        draw_waterbirds(data, per_group=2)
        guidance = tmp_path / 'guidance'
        guidance.mkdir()
        for i in range(3):
            Image.effect_noise((32, 32), 50 + i).convert('RGB').save(guidance / f'{i}.png')
    config = classification_config(f'benchmark/{name}', data, tiny_sd, tmp_path / 'work')
    config.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    config.model.head.in_channels = 64
    for fragment in config.benchmark.methods.values():
        if 'search' in fragment:
            fragment.search.update(steps=2)
        for term in fragment.get('feedback', ()):
            term.pop('start', None)
            if 'clip' in term:
                term.update(clip=dict(model='mmgap://toybirds-clip'))
            if 'images' in term and 'iwildcam' in name:
                term.images.data_root = str(data)
                term.limit = 2
            elif 'images' in term:
                term.images = str(guidance)
    config.default_scope = 'mmpretrain'
    init_default_scope('mmpretrain')
    allow_checkpoint_history()
    benchmark = Benchmark(config, tmp_path / 'out', [7])
    drawn = {}
    for method in benchmark.methods.values():
        if not method.makes_images or method.prompts_of or method.dataset:
            continue
        pool = SamplePool(benchmark.pool(method.name, 0))
        assert len(pool) >= 7 and all(sample.kept for sample in pool.samples)
        drawn[method.name] = pool.samples[0].prompt_id.split('@')[1]  # names what the prompt says
    assert len(drawn) >= 6 and len(set(drawn.values())) == len(drawn), list(drawn)


@pytest.mark.slow  # 45 s: eight methods make images and train
def test_methods_of_depth(tmp_path, tiny_sd, tiny_controlnet):
    """Each fragment makes its images, and trains the last layer on them."""
    config = depth_config(
        'ap_unet_taskonomy-depth',
        tmp_path,
        tiny_sd,
        tiny_controlnet,
        file='benchmark/taskonomy-depth_unet',
    )
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
        if benchmark.methods[method].makes_images:
            samples = SamplePool(benchmark.pool(method, 0)).samples
            seen[method] = samples[0].prompt_id.split('@')[-1], samples[0].generator
    assert list(methods)[0] == 'none' and len(seen) == 8
    apart = ('agnostic', 'random', 'prompts', 'gp', 'ap-sdedit', 'real')
    assert len({seen[method] for method in apart}) == 6  # the others stop where they start
