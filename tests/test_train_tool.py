# SPDX-License-Identifier: Apache-2.0
"""What tools/train.py makes of its options, before MMEngine takes over."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
NEW = ROOT / 'tests' / 'support' / 'new_style.py'


@pytest.fixture
def made(monkeypatch):
    """The config that the tool would train with."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import train as tool

    def run(config, *options):
        seen = []
        runner = SimpleNamespace(
            from_cfg=lambda c: seen.append(c) or SimpleNamespace(train=lambda: 0)
        )
        monkeypatch.setattr(tool, 'Runner', runner)
        monkeypatch.setattr(sys, 'argv', ['train.py', str(config), *options])
        tool.main()
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
