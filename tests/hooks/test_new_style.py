# SPDX-License-Identifier: Apache-2.0
"""Configs of the new style: classes for names, no default scope, ``read_base``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import save_file

from mmgap.compat import allow_checkpoint_history, name_pretrained
from mmgap.configs import gap_hooks, is_gap_hook, name_of, toolbox_of
from mmgap.hooks import GAPHook
from tests.support.commands import run_command
from tests.support.miniature import draw_waterbirds

ROOT = Path(__file__).parents[2]
NEW = ROOT / 'tests' / 'support' / 'new_style_gap.py'


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


def weights(path):
    allow_checkpoint_history()
    return torch.load(path, weights_only=True)['state_dict']


@pytest.fixture
def options(tmp_path, tiny_sd):
    data = draw_waterbirds(tmp_path / 'data', per_group=2)
    places = [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'test')]
    return ['--cfg-options', f'custom_hooks.0.generator.model={tiny_sd}', *places]


def contents(folder, pattern):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob(pattern)}


def test_tools_take_classes_for_names(tmp_path, options):
    """What they search and draw is what the hook does in its round."""
    run_command('train', NEW, '--work-dir', tmp_path / 'new', *options).check()
    assert run_command('check', NEW, '--tiny', *options).check().endswith('ready\n')
    checkpoint = tmp_path / 'new' / 'gap_round.pth'
    find = ('--checkpoint', checkpoint, '--out', tmp_path / 'found')
    run_command('search_prompts', NEW, *find, *options).check()
    draw = ('--prompts', tmp_path / 'found', '--num', 4, '--out', tmp_path / 'pool')
    run_command('generate', NEW, *draw, *options).check()
    trained = tmp_path / 'new' / 'epoch_2.pth'
    run_command('test', NEW, trained, '--work-dir', tmp_path / 't', *options).check()
    gap = tmp_path / 'new' / 'gap'
    found = {p.name: p.read_bytes() for p in (tmp_path / 'found').glob('*.safetensors')}
    assert len(found) == 2
    assert found == {p.name: p.read_bytes() for p in (gap / 'prompts').glob('*.safetensors')}
    images = contents(gap / 'pool', '*.png')
    assert len(images) == 4
    assert images.items() <= contents(tmp_path / 'pool', '*.png').items()


def test_training_equals_that_with_names(tmp_path, options):
    settings = Config.fromfile(NEW)  # with what the file imports
    named = {k: by_name(v) for k, v in settings.items() if isinstance(v, (dict, list))}
    Config(dict(named, default_scope='mmpretrain')).dump(tmp_path / 'named.py')
    for name, config in (('new', NEW), ('named', tmp_path / 'named.py')):
        run_command('train', config, '--work-dir', tmp_path / name, *options).check()
    new, old = (weights(tmp_path / name / 'epoch_2.pth') for name in ('new', 'named'))
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    for pattern in ('prompts/*.safetensors', '*.png'):
        pair = [contents(tmp_path / name / 'gap', pattern) for name in ('new', 'named')]
        assert pair[0] == pair[1] and pair[0]


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
