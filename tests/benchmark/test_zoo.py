# SPDX-License-Identifier: Apache-2.0
"""The zoo benchmark on the embedded world, with few steps and images."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

from mmgap.benchmark.models import check_weights, with_model
from mmgap.weights import without_pretrained
from tests.support.benchmarks import BIRDS, ROOT
from tests.support.commands import run_command

CONFIG = ROOT / 'configs' / 'benchmark' / 'toybirds_zoo.py'
MODELS_OF_RUN = ['resnet18', 'convnext-tiny']


@pytest.fixture(scope='module')
def config() -> Config:
    return Config.fromfile(CONFIG)


def test_the_zoo_changes_what_it_names_and_nothing_else(config):
    own = with_model(config, 'resnet18')
    assert own.model == config.model and own.benchmark == config.benchmark
    vit = with_model(config, 'vit-tiny')
    assert vit.model.backbone.type == 'VisionTransformer' and 'depth' not in vit.model.backbone
    assert vit.benchmark.train == {} and vit.optim_wrapper.optimizer.type == 'AdamW'
    assert vit.benchmark.methods == config.benchmark.methods
    assert vit.custom_hooks == config.custom_hooks
    assert config.optim_wrapper.optimizer.type == 'SGD', 'the config itself must stay'


def test_every_model_of_the_zoo_builds_and_learns_two_classes(config):
    init_default_scope('mmpretrain')
    sizes = {}
    for name in config.zoo:
        settings = without_pretrained(with_model(config, name).model)
        model = MODELS.build(settings)
        assert model.head.num_classes == 2
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert all(1e5 < size < 5e6 for size in sizes.values()), sizes


def test_a_model_of_mmpretrain_takes_the_place_of_the_config_s(config):
    changed = with_model(config, 'resnet50_8xb32_in1k')
    assert changed.model.head.num_classes == changed.model.data_preprocessor.num_classes == 2
    assert changed.model.backbone.init_cfg.checkpoint.startswith('https://')
    # It is of the config's own model, and the rest of the benchmark stays.
    assert 'model.backbone.norm_eval' in config.benchmark.train
    assert 'model.backbone.norm_eval' not in changed.benchmark.train
    assert changed.benchmark.methods == config.benchmark.methods
    init_default_scope('mmpretrain')
    assert MODELS.build(changed.model).head.fc.out_features == 2


def test_weights_that_are_not_there_are_named(config):
    with pytest.raises(FileNotFoundError, match='vit-tiny: .*no/vit.safetensors; pretrain it with'):
        changed = with_model(config, 'vit-tiny')
        changed.model.backbone.init_cfg.checkpoint = 'mmgap://no/vit.safetensors'
        check_weights('vit-tiny', changed)
    check_weights('resnet18', with_model(config, 'resnet18'))
    changed.model.backbone.init_cfg.checkpoint = 'http://127.0.0.1:9/vit.pth'
    with pytest.raises(
        FileNotFoundError, match=r'vit-tiny: .*host 127\.0\.0\.1 failed .*timm://NAME'
    ):
        check_weights('vit-tiny', changed)


def test_unknown_names_are_refused(config):
    with pytest.raises(ValueError, match="'resnet51' is neither in the zoo of the config"):
        with_model(config, 'resnet51')
    config = Config(dict(config.to_dict(), zoo=dict(odd={'optim.wrapper.lr': 1})))
    with pytest.raises(ValueError, match="changes 'optim.wrapper.lr', which the config does not"):
        with_model(config, 'odd')


@pytest.fixture
def weights(tmp_path, config) -> Path:
    """Weights for the ConvNeXt of the zoo, as they come from a pretraining."""
    init_default_scope('mmpretrain')
    settings = with_model(config, 'convnext-tiny').model.backbone
    settings.init_cfg = None
    path = tmp_path / 'convnext.safetensors'
    state = MODELS.build(settings).state_dict()
    save_file({f'backbone.{name}': value.clone() for name, value in state.items()}, path)
    return path


def test_two_targets(tmp_path, weights):
    """The diagonal of the matrix is the target's own cell."""
    options = ['--models', 'resnet18', 'convnext-tiny', '--methods', 'none']
    options += ['--transfer', 'agnostic', '--budget', 2, '--seeds', 0]
    init = 'zoo.convnext-tiny.model.backbone.init_cfg.checkpoint'
    options += ['--cfg-options', *BIRDS, f'{init}=mmgap://{weights}', 'benchmark.evaluate=None']
    command = ['benchmark_zoo', CONFIG, '--out', tmp_path / 'o', *options]
    assert '[8/8] seed 0, convnext-tiny on images of' in run_command(*command).check()
    results = json.loads((tmp_path / 'o' / 'results.json').read_text())
    own = {(c['model'], c['method']): c for c in results['cells']}
    assert set(own) == set(product(MODELS_OF_RUN, ('none', 'agnostic')))
    matrix = {(t['images_of'], t['model']): t for t in results['transfers']}
    assert set(matrix) == set(product(MODELS_OF_RUN, MODELS_OF_RUN))
    for model in MODELS_OF_RUN:
        assert matrix[model, model]['worst_group'] == own[model, 'agnostic']['worst_group']
        # What the synthesis wrote of the same images, before they were files.
        (manifest,) = (tmp_path / 'o' / model / 'pools').glob('agnostic-*/manifest.jsonl')
        losses = [json.loads(line)['target_loss_image'] for line in manifest.open()]
        assert matrix[model, model]['loss'] == pytest.approx(np.mean(losses), rel=0.02)
    assert '4 of 8 cells' not in run_command(*command).check()
    assert json.loads((tmp_path / 'o' / 'results.json').read_text()) == results
    meta = json.loads((tmp_path / 'o' / 'meta.json').read_text())
    assert list(meta['models']) == MODELS_OF_RUN and meta['method'] == 'agnostic'


@pytest.mark.slow  # 15 s: as test_two_targets, with a search against each
def test_images_of_a_search_differ_between_targets(tmp_path, weights):
    options = ['--models', *MODELS_OF_RUN, '--methods', 'gap', '--budget', 8, '--seeds', 0]
    init = 'zoo.convnext-tiny.model.backbone.init_cfg.checkpoint'
    options += ['--cfg-options', *BIRDS, f'{init}=mmgap://{weights}']
    run_command('benchmark_zoo', CONFIG, '--out', tmp_path / 'o', *options).check()
    results = json.loads((tmp_path / 'o' / 'results.json').read_text())
    matrix = {(t['images_of'], t['model']): t['loss'] for t in results['transfers']}
    own, others = (matrix[name, 'convnext-tiny'] for name in reversed(MODELS_OF_RUN))
    assert own != others  # by little, after one step of search; the same images would be equal


@pytest.mark.parametrize(
    'options, words',
    [
        (['--transfer', 'none', '--models', 'resnet18'], "--transfer 'none' makes no images"),
        (['--models', 'resnet51'], "'resnet51' is neither in the zoo of the config"),
    ],
)
def test_bad_arguments(options, words, tmp_path):
    ended = run_command('benchmark_zoo', CONFIG, '--out', tmp_path, *options)
    assert ended.code == 1 and words in ended.output


@pytest.mark.parametrize(
    'name, words',
    [
        ('toydepth_resnet18', 'has no classifier: its model has no head.num_classes'),
        ('toybirds_resnet18', 'has no `zoo`; name models of MMPretrain with --models'),
    ],
)
def test_configs_without_targets(name, words, tmp_path):
    config = ROOT / 'configs' / 'benchmark' / f'{name}.py'
    ended = run_command('benchmark_zoo', config, '--out', tmp_path)
    assert ended.code == 1 and words in ended.output
