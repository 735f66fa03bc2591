# SPDX-License-Identifier: Apache-2.0
"""The zoo benchmark on the embedded world, with few steps and images."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

from mmgap.benchmark.zoo import check_weights, with_model
from mmgap.benchmark.zoo_report import write_report
from tests.support.quick_benchmark import QUICK, ROOT

CONFIG = ROOT / 'configs' / 'gap_zoo_toybirds.py'


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
        settings = with_model(config, name).model
        settings.backbone.init_cfg = None
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


def test_report_and_metafile_say_what_was_measured(tmp_path):
    cells = [
        dict(model=m, method=k, seed=s, images=8, worst_group=w + s / 10, mean=0.5)
        for m, k, w in [
            ('a', 'none', 0.1),
            ('a', 'gap', 0.4),
            ('b', 'none', 0.2),
            ('b', 'gap', 0.7),
        ]
        for s in (0, 1)
    ]
    losses = {('a', 'a'): 1.0, ('a', 'b'): 2.0, ('b', 'a'): 3.0, ('b', 'b'): 4.0}
    transfers = [
        dict(images_of=r, model=c, seed=s, loss=loss, accuracy=loss / 10, worst_group=loss / 20)
        for (r, c), loss in losses.items()
        for s in (0, 1)
    ]
    meta = dict(command='x', models=dict(a=10**6, b=2 * 10**6), method='gap', budget=8)
    meta.update(layers='all', test='test', data='ToyBirds', config='c.py')
    write_report(tmp_path, cells, transfers, meta, 16)
    text = (tmp_path / 'results.md').read_text()
    assert '| a | 1.00 M | gap | 8 | 45.0 ± 7.1 | 50.0 ± 0.0 |' in text
    assert '| b | 3.00 ± 0.00 | 4.00 ± 0.00 |' in text  # rows: whose images
    (first, second) = yaml.safe_load((tmp_path / 'metafile.yml').read_text())['Models']
    assert first['Name'] == 'gap_a_toybirds' and second['In Collection'] == 'GAP'
    (result,) = second['Results']
    assert result['Metrics']['Worst-group accuracy'] == 75.0
    write_report(tmp_path, cells[:5], transfers[:1], meta, 16)  # up to the first of model b
    text = (tmp_path / 'results.md').read_text()
    assert '**Incomplete: 6 of 16 cells.**' in text
    assert '| b | 2.00 M | none | 8 | 20.0 | 50.0 |' in text
    assert '| a | 1.00 |  |' in text and '| b |  |  |' in text
    assert len(yaml.safe_load((tmp_path / 'metafile.yml').read_text())['Models']) == 1


@pytest.mark.slow
def test_quick_run(tmp_path, config):
    """Two targets, all files; the diagonal of the matrix is the target's own cell."""
    init_default_scope('mmpretrain')
    settings = with_model(config, 'convnext-tiny').model.backbone
    settings.init_cfg = None
    weights = tmp_path / 'convnext.safetensors'
    save_file(
        {f'backbone.{k}': v.clone() for k, v in MODELS.build(settings).state_dict().items()},
        weights,
    )
    options = ['--models', 'resnet18', 'convnext-tiny', '--budget', '8', '--seeds', '0']
    init = 'zoo.convnext-tiny.model.backbone.init_cfg.checkpoint'
    options += ['--cfg-options', *QUICK, f'{init}=mmgap://{weights}']
    command = [sys.executable, 'tools/benchmark_zoo.py', str(CONFIG), '--out', str(tmp_path / 'o')]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / 'o' / 'results.json').read_text())
    own = {(c['model'], c['method']): c for c in results['cells']}
    assert len(own) == 4
    matrix = {(t['images_of'], t['model']): t for t in results['transfers']}
    assert len(matrix) == 4
    for model in ('resnet18', 'convnext-tiny'):
        assert matrix[model, model]['worst_group'] == own[model, 'gap']['worst_group']
        # What the synthesis said of the same images, before they were files.
        (manifest,) = (tmp_path / 'o' / model / 'pools').glob('gap-*/manifest.jsonl')
        told = [json.loads(line)['target_loss_image'] for line in manifest.open()][:8]
        assert matrix[model, model]['loss'] == pytest.approx(np.mean(told), rel=0.02)
    own_images, others_images = (
        matrix[name, 'convnext-tiny']['loss'] for name in ('convnext-tiny', 'resnet18')
    )
    assert own_images != pytest.approx(others_images, rel=1e-3)
    again = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads((tmp_path / 'o' / 'results.json').read_text()) == results
