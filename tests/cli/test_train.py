# SPDX-License-Identifier: Apache-2.0
"""What ``train`` makes of its options, before MMEngine takes over."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmgap.cli import train as tool
from mmgap.cli.main import main
from tests.support.commands import ROOT

NEW = ROOT / 'tests' / 'support' / 'new_style.py'


@pytest.fixture
def made(monkeypatch):
    """The config that it would train with."""

    def run(config, *options):
        seen = []
        runner = SimpleNamespace(
            from_cfg=lambda c: seen.append(c) or SimpleNamespace(train=lambda: 0)
        )
        monkeypatch.setattr(tool, 'Runner', runner)
        monkeypatch.setattr(sys, 'argv', [])
        main(['train', str(config), *options])
        return seen[0]

    return run


def test_auto_scale_lr(made, tmp_path):
    config = Config(dict(default_scope='mmpretrain', model={}, auto_scale_lr={}))
    config.dump(tmp_path / 'c.py')
    with pytest.raises(SystemExit, match=r'add auto_scale_lr=dict\(base_batch_size=N\)'):
        made(tmp_path / 'c.py', '--auto-scale-lr')
    option = ('--cfg-options', 'auto_scale_lr.base_batch_size=12')
    scaled = made(tmp_path / 'c.py', '--auto-scale-lr', *option)
    assert scaled.auto_scale_lr == dict(base_batch_size=12, enable=True)
    assert made(tmp_path / 'c.py', *option).auto_scale_lr == dict(base_batch_size=12)
    for name in (
        'gap_resnet50_waterbirds',
        'gap_vit-base-p16_iwildcam',
        'gap_resnet50_nyu-depth',
        'gap_unet_taskonomy-depth',
    ):
        shipped = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        assert shipped.auto_scale_lr.base_batch_size == shipped.train_dataloader.batch_size


def test_classes_for_names(made):
    """--amp knows the class of a wrapper, and the loaders are MMPretrain's by the model's."""
    config = made(NEW, '--amp')
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.train_dataloader.collate_fn == dict(type='default_collate')
    assert config.model.backbone.init_cfg.type == 'Pretrained'


def test_shipped_config_by_name(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / 'configs' / 'gap_resnet18_toybirds.py'
    for name in ('gap_resnet18_toybirds', 'gap_resnet18_toybirds.py'):
        config = made(name, '--cfg-options', 'train_cfg.max_epochs=7')
        assert config.filename == str(shipped) and config.train_cfg.max_epochs == 7
        assert config.work_dir == 'work_dirs/gap_resnet18_toybirds'
        assert capsys.readouterr().err == f'config {name}: {shipped}\n'
    (tmp_path / 'gap_resnet18_toybirds.py').write_text("model = {}\nwork_dir = 'here'")
    own = made('gap_resnet18_toybirds.py')
    assert own.work_dir == 'here' and own.filename == 'gap_resnet18_toybirds.py'
    assert made('gap_resnet18_toybirds.py', '--work-dir', 'there').work_dir == 'there'
