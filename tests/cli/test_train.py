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
        'ap_resnet50_waterbirds',
        'gap_vit-base-p16_iwildcam',
        'ap_resnet50_nyu-depth',
        'ap_unet_taskonomy-depth',
    ):
        shipped = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        assert shipped.auto_scale_lr.base_batch_size == shipped.train_dataloader.batch_size


def test_classes_for_names(made):
    """--amp knows the class of a wrapper, and the loaders are MMPretrain's by the model's."""
    config = made(NEW, '--amp')
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.train_dataloader.collate_fn == dict(type='default_collate')
    assert config.model.backbone.init_cfg.type == 'Pretrained'


def test_gap_hook(made, tmp_path):
    """What is typed counts, whether it names the hook in the list or what changes it."""
    options = ['custom_hooks.0.search.steps=3', 'gap_hook.search.images_per_prompt=4']
    config = made('gap_resnet18_toybirds', '--cfg-options', *options, 'gap_hook.budget=9')
    (hook,) = config.custom_hooks
    assert (hook.search.steps, hook.search.images_per_prompt, hook.budget) == (3, 4, 9)
    assert hook.search.aim == 1.0 and len(hook.feedback) == 2 and 'gap_hook' not in config
    with pytest.raises(SystemExit, match='config gap_resnet18_toybirds: gap_hook must be a dict'):
        made('gap_resnet18_toybirds', '--cfg-options', 'gap_hook=5')
    with pytest.raises(SystemExit, match='which has 0; add or take out some, or set gap_hook=None'):
        made('ap_resnet18_toybirds', '--cfg-options', 'custom_hooks=[]', 'gap_hook.budget=9')
    with pytest.warns(FutureWarning, match='gap_zoo_toybirds.py: .* is called benchmark/toybirds_'):
        assert 'renamed' not in made('gap_zoo_toybirds')


def test_shipped_config_by_name(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / 'configs' / 'ap_resnet18_toybirds.py'
    for name in ('ap_resnet18_toybirds', 'ap_resnet18_toybirds.py'):
        config = made(name, '--cfg-options', 'train_cfg.max_epochs=7')
        assert config.filename == str(shipped) and config.train_cfg.max_epochs == 7
        assert config.work_dir == 'work_dirs/ap_resnet18_toybirds'
        assert capsys.readouterr().err == f'config {name}: {shipped}\n'
    (tmp_path / 'ap_resnet18_toybirds.py').write_text("model = {}\nwork_dir = 'here'")
    own = made('ap_resnet18_toybirds.py')
    assert own.work_dir == 'here' and own.filename == 'ap_resnet18_toybirds.py'
    assert made('ap_resnet18_toybirds.py', '--work-dir', 'there').work_dir == 'there'
