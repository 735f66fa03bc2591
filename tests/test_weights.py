# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights: from timm's files, and what is said where they cannot be fetched."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
import urllib.error
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

from mmgap.compat import allow_mmcv_without_ops
from mmgap.weights import ELSEWHERE, url_of

ROOT = Path(__file__).parents[1]


def initialised(settings, checkpoint):
    torch.manual_seed(1)
    network = MODELS.build(dict(settings, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
    network.init_weights()
    network.eval()
    return network


@pytest.mark.parametrize('toolbox', ['mmpretrain', 'mmseg'])
def test_a_vit_of_timm(toolbox, tmp_path):
    """It says the same in MMPretrain, and in MMSegmentation."""
    import timm

    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    model = timm.create_model('vit_tiny_patch16_224', **sizes).eval()
    save_file(model.state_dict(), tmp_path / 'vit.safetensors')
    if toolbox == 'mmpretrain':
        import mmpretrain.models  # noqa: F401

        arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=64)
        settings = dict(type='mmpretrain.VisionTransformer', arch=arch, out_type='raw')
        checkpoint = f'timm://{tmp_path / "vit.safetensors"}'
    else:
        allow_mmcv_without_ops()
        import mmseg.models  # noqa: F401

        settings = dict(type='mmseg.VisionTransformer', embed_dims=16, num_layers=2, num_heads=2)
        settings.update(
            patch_bias=True, final_norm=True, out_indices=1, norm_cfg=dict(type='LN', eps=1e-6)
        )
        checkpoint = f'timm-mmseg://{tmp_path / "vit.safetensors"}'
    network = initialised(dict(settings, img_size=32, patch_size=8), checkpoint)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, (found,) = model.forward_features(pictures), network(pictures)
    if toolbox == 'mmseg':
        expected, found = expected[:, 1:], found.flatten(2).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize('kind', ['mmpretrain.ResNet', 'mmpretrain.ResNetV1c', 'mmseg.ResNetV1c'])
def test_a_resnet_of_timm(kind, tmp_path):
    import timm

    allow_mmcv_without_ops()
    import mmpretrain.models  # noqa: F401
    import mmseg.models  # noqa: F401

    torch.manual_seed(0)
    name, depth = ('resnet50c', 50) if kind.endswith('V1c') else ('resnet18', 18)
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / 'resnet.safetensors')
    prefix = 'timm-mmseg' if kind.startswith('mmseg') else 'timm'
    checkpoint = f'{prefix}://{tmp_path / "resnet.safetensors"}'
    network = initialised(dict(type=kind, depth=depth), checkpoint)
    pictures = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        difference = network(pictures)[-1] - model.forward_features(pictures)
    assert difference.abs().max() < 1e-4


def test_other_models_of_timm_are_refused(tmp_path):
    """MMEngine would warn, and train on from a random start."""
    path = tmp_path / 'other.safetensors'
    save_file({'stages.0.blocks.0.gamma': torch.ones(2), 'head.fc.weight': torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"only plain ViT and ResNet .* has \['stages.0.blocks"):
        CheckpointLoader.load_checkpoint(f'timm://{path}')
    with pytest.raises(FileNotFoundError, match='there is no file'):
        CheckpointLoader.load_checkpoint('timm:///no/such.safetensors')
    with pytest.raises(FileNotFoundError, match='huggingface.co.* of timm/a.b elsewhere'):
        CheckpointLoader.load_checkpoint('timm://a.b')


def test_a_host_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    refused = 'http://127.0.0.1:9/some-1234.pth'
    with pytest.raises(FileNotFoundError, match=r'host 127\.0\.0\.1 failed') as caught:
        CheckpointLoader.load_checkpoint(refused)
    assert f'put it at {tmp_path / "checkpoints" / "some-1234.pth"}' in str(caught.value)
    assert 'load_from' in str(caught.value) and 'Hugging Face' not in str(caught.value)

    def expired(*args, **kwargs):
        raise urllib.error.URLError(ssl.SSLCertVerificationError('certificate has expired'))

    monkeypatch.setattr(torch.hub, 'urlopen', expired)
    for name, host, other in (
        (
            'open-mmlab://resnet50_v1c',
            '(download.openmmlab.com|mmassets.onedl.ai)',  # of either family
            'timm-mmseg://resnet50c.gluon_in1k',
        ),
        ('torchvision://resnet50', 'download.pytorch.org', 'timm://resnet50.tv_in1k'),
    ):
        words = f"host {host} failed .*certificate has expired.*checkpoint='{re.escape(other)}'"
        with pytest.raises(FileNotFoundError, match=words):
            CheckpointLoader.load_checkpoint(name)


def test_a_host_that_sends_something_else(tmp_path, monkeypatch):
    """A login page, say: it stays where the next run would look."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'<html>log in</html>')

        def log_message(self, *args) -> None:
            pass

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    server = http.server.HTTPServer(('127.0.0.1', 0), Page)
    threading.Thread(target=server.handle_request, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/page.pth'
    with pytest.raises(
        FileNotFoundError, match=r'page\.pth, fetched as .*is no checkpoint: delete'
    ):
        CheckpointLoader.load_checkpoint(url)
    server.server_close()


def test_shipped_configs_have_a_second_source():
    """No weights that only a host of OpenMMLab has."""
    for path in ROOT.glob('configs/**/*.py'):
        for checkpoint in re.findall(r"checkpoint='([^']+)'", path.read_text()):
            url = url_of(checkpoint)
            assert 'openmmlab' not in url or url.rpartition('/')[2] in ELSEWHERE, (path, checkpoint)


@pytest.mark.slow  # 20 s: networks in their own sizes, written and read
@pytest.mark.parametrize(
    'config', ['ap_vit-base-p16_waterbirds', 'ap_resnet50_nyu-depth', 'ap_dpt-vit-b16_nyu-depth']
)
def test_backbones_of_shipped_configs_take_all_of_it(config, tmp_path):
    """Random weights of the model that the config names fill the backbone but for buffers."""
    import timm

    allow_mmcv_without_ops()
    import mmpretrain.models  # noqa: F401
    import mmseg.models  # noqa: F401

    backbone = Config.fromfile(ROOT / 'configs' / f'{config}.py').model.backbone
    prefix, _, name = backbone.pop('init_cfg').checkpoint.partition('://')
    save_file(timm.create_model(name).state_dict(), tmp_path / 'w.safetensors')
    state = CheckpointLoader.load_checkpoint(f'{prefix}://{tmp_path / "w.safetensors"}')
    scope = 'mmseg' if 'nyu' in config else 'mmpretrain'
    backbone.type = f'{scope}.{backbone.type}'
    if 'norm_cfg' in backbone:
        backbone.norm_cfg = dict(type='BN')
    own = MODELS.build(backbone).state_dict()
    assert set(state) - set(own) <= {'ln1.weight', 'ln1.bias'}  # DPT has no final norm
    assert set(own) <= set(state)
    resized = {'pos_embed'}
    assert all(own[k].shape == state[k].shape for k in own if k not in resized)


def test_weights_of_an_installed_package(tmp_path, monkeypatch):
    folder = tmp_path / 'some_package' / 'models'
    folder.mkdir(parents=True)
    (tmp_path / 'some_package' / '__init__.py').touch()
    torch.save({'weight': torch.arange(3.0)}, folder / 'some.pth')
    monkeypatch.syspath_prepend(tmp_path)
    network = torch.nn.Linear(3, 1, bias=False)
    state = CheckpointLoader.load_checkpoint('package://some_package/models/some.pth')
    assert list(state) == ['weight'] and state['weight'].tolist() == [0, 1, 2]
    network.load_state_dict({'weight': state['weight'][None]})
    for name, words in (
        ('some_package/models/none.pth', 'package some_package has no file models/none.pth'),
        ('some_package', 'package some_package has no file '),
        ('no_such_package/some.pth', 'package no_such_package is not installed'),
    ):
        with pytest.raises(FileNotFoundError, match=f"'package://{name}': {words}"):
            CheckpointLoader.load_checkpoint(f'package://{name}')
