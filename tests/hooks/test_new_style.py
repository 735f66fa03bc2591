# SPDX-License-Identifier: Apache-2.0
"""Configs of the new style: classes for names, no default scope, ``read_base``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file

from mmgap.compat import allow_checkpoint_history, name_pretrained
from mmgap.configs import gap_hooks, is_gap_hook, name_of, toolbox_of
from mmgap.hooks import GAPHook
from tests.miniature import draw_waterbirds

ROOT = Path(__file__).parents[2]
NEW = ROOT / 'tests' / 'hooks' / 'new_style_gap.py'


def by_name(settings):
    """The same settings with registered names for classes."""
    if isinstance(settings, dict):
        return {key: by_name(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(by_name, settings))
    if not isinstance(settings, type):
        return settings
    own = settings.__module__.startswith('mmgap.')
    return 'mmgap.' * own + {'PretrainedInit': 'Pretrained'}.get(
        settings.__name__, name_of(settings)
    )


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run a tool in this process, where no earlier test has left a default scope."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setattr(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)())

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


def weights(path):
    allow_checkpoint_history()
    return torch.load(path, weights_only=True)['state_dict']


def test_tools_take_classes_for_names(tool, tmp_path, tiny_sd):
    """They train, search and draw as those of the same config with names."""
    data = draw_waterbirds(tmp_path / 'data', per_group=2)
    options = ['--cfg-options', f'custom_hooks.0.generator.model={tiny_sd}']
    options += [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'test')]
    settings = Config.fromfile(NEW)  # with what the file imports
    named = {k: by_name(v) for k, v in settings.items() if isinstance(v, (dict, list))}
    Config(dict(named, default_scope='mmpretrain')).dump(tmp_path / 'named.py')
    tool('train', NEW, '--work-dir', tmp_path / 'new', *options)
    assert tool('check', NEW, '--tiny', *options).endswith('ready\n')
    checkpoint = tmp_path / 'new' / 'gap_round.pth'
    tool('search_prompts', NEW, '--checkpoint', checkpoint, '--out', tmp_path / 'found', *options)
    draw = ('--prompts', tmp_path / 'found', '--num', 4, '--out', tmp_path / 'pool')
    tool('generate', NEW, *draw, *options)
    tool('test', NEW, tmp_path / 'new' / 'epoch_2.pth', '--work-dir', tmp_path / 't', *options)
    tool('train', tmp_path / 'named.py', '--work-dir', tmp_path / 'named', *options)
    new, old = (weights(tmp_path / name / 'epoch_2.pth') for name in ('new', 'named'))
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    # The hook's first round, step by step.
    for path in (tmp_path / 'named' / 'gap' / 'prompts').glob('*.safetensors'):
        assert path.read_bytes() == (tmp_path / 'found' / path.name).read_bytes()
    images = sorted((tmp_path / 'named' / 'gap' / 'pool').rglob('*.png'))
    assert len(images) == 4
    for path in images:
        place = path.relative_to(tmp_path / 'named' / 'gap' / 'pool')
        assert path.read_bytes() == (tmp_path / 'pool' / place).read_bytes()


def test_one_way_to_know_the_hook():
    class Own(GAPHook):
        pass

    other = dict(type='EMAHook')
    ours = [dict(type=kind) for kind in ('mmgap.GAPHook', 'mmgap.hooks.GAPHook', GAPHook, Own)]
    assert gap_hooks(dict(custom_hooks=[other, *ours])) == ours
    assert not is_gap_hook(SimpleNamespace(type='mmgap.GAPHook')) and gap_hooks({}) == []


def test_toolbox_of_a_model():
    from mmpretrain.models import ImageClassifier

    assert toolbox_of(dict(default_scope='mmseg')) == 'mmseg'
    assert toolbox_of(dict(default_scope=None, model=dict(type=ImageClassifier))) == 'mmpretrain'
    assert toolbox_of(dict(default_scope=None, model=dict(type='mmseg.EncoderDecoder'))) == 'mmseg'
    model = type('Own', (type('Base', (), dict(__module__='mmseg.models.segmentors.base')),), {})
    assert toolbox_of(dict(default_scope=None, model=dict(type=model))) == 'mmseg'


def test_pretrained_weights_stay_loaded(tmp_path):
    """MMPretrain's ViT would draw its position embedding anew."""
    from mmengine.model import PretrainedInit
    from mmpretrain.models import VisionTransformer

    arch = dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8)
    settings = dict(type=VisionTransformer, arch=arch, img_size=32, patch_size=16)
    torch.manual_seed(1)
    saved = MODELS.build(dict(settings)).state_dict()
    saved['pos_embed'] = torch.randn_like(saved['pos_embed'])
    save_file(saved, tmp_path / 'vit.safetensors')
    init = dict(type=PretrainedInit, checkpoint=f'mmgap://{tmp_path / "vit.safetensors"}')
    model = dict(backbone=dict(settings, init_cfg=init))
    name_pretrained(model)
    backbone = MODELS.build(model['backbone'])
    backbone.init_weights()
    assert torch.equal(backbone.pos_embed, saved['pos_embed'])
