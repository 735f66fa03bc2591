# SPDX-License-Identifier: Apache-2.0
"""Depth heads inside MMSegmentation's own DepthEstimator, tiny."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData

import mmgap.models  # noqa: F401  before mmseg: see mmgap.compat
from mmgap.feedback import masked_l1

pytestmark = pytest.mark.smoke

CONV = dict(
    backbone=dict(
        type='mmseg.ResNetV1c',
        depth=18,
        base_channels=8,
        stem_channels=8,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
    ),
    decode_head=dict(
        type='mmgap.ConvDepthHead',
        in_channels=[8, 16, 32, 64],
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=16,
        norm_cfg=dict(type='BN'),
    ),
)
DPT = dict(
    backbone=dict(
        type='mmseg.VisionTransformer',
        img_size=64,
        embed_dims=16,
        num_layers=4,
        num_heads=2,
        out_indices=(0, 1, 2, 3),
        final_norm=False,
        with_cls_token=True,
        output_cls_token=True,
    ),
    decode_head=dict(
        type='mmgap.DPTDepthHead',
        in_channels=(16, 16, 16, 16),
        in_index=(0, 1, 2, 3),
        input_transform='multiple_select',
        channels=16,
        embed_dims=16,
        post_process_channels=[4, 8, 16, 16],
        readout_type='project',
        norm_cfg=dict(type='BN'),
    ),
)


def build(settings, losses, max_depth=20.0):
    from mmseg.registry import MODELS

    head = dict(settings['decode_head'], max_depth=max_depth, loss_decode=losses)
    return MODELS.build(
        dict(
            type='mmseg.DepthEstimator',
            data_preprocessor=dict(
                type='mmseg.SegDataPreProcessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                bgr_to_rgb=True,
                size=(64, 64),
                seg_pad_val=0,
            ),
            backbone=settings['backbone'],
            decode_head=head,
            train_cfg=dict(),
            test_cfg=ConfigDict(mode='whole'),
        )
    )


def batch():
    from mmseg.structures import SegDataSample

    rng = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
        depth = 1 + 10 * torch.rand(1, 64, 64, generator=rng)
        depth[:, :8] = 0
        sample.gt_depth_map = PixelData(data=depth)
        samples.append(sample)
    return 255 * torch.rand(2, 3, 64, 64, generator=rng), samples


@pytest.mark.parametrize('settings', [CONV, DPT], ids=['conv', 'dpt'])
def test_a_depth_estimator_learns_and_tells_metres(settings):
    torch.manual_seed(0)
    model = build(settings, [dict(type='mmgap.MaskedL1Loss')])
    images, samples = batch()
    images.requires_grad_()
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    values = []
    for _ in range(8):
        losses = model(**data, mode='loss')
        assert list(losses) == ['decode.loss_l1']
        optimizer.zero_grad()
        losses['decode.loss_l1'].backward(retain_graph=True)
        optimizer.step()
        values.append(float(losses['decode.loss_l1'].detach()))
    assert values[-1] < 0.8 * values[0]
    assert images.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        told = model(**data, mode='predict')
        loss = float(model(**data, mode='loss')['decode.loss_l1'])
    depth = torch.stack([sample.pred_depth_map.data for sample in told])
    assert depth.shape == (2, 1, 64, 64)
    assert 0 < depth.min() and depth.max() < 20
    truth = torch.stack([sample.gt_depth_map.data for sample in samples])
    assert float(masked_l1(depth, truth).mean()) == pytest.approx(loss, rel=1e-4)


def test_several_losses_are_told_by_name():
    losses = [dict(type='mmgap.RobustSiLogLoss'), dict(type='mmgap.ScaleShiftInvariantLoss')]
    model = build(CONV, [*losses, losses[0], dict(type='mmseg.SiLogLoss', loss_name='loss_up')])
    images, samples = batch()
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), False)
    with torch.no_grad():
        found = model.eval()(**data, mode='loss')
    assert list(found) == ['decode.loss_silog', 'decode.loss_ssi', 'decode.loss_up']
    # The first was given twice; upstream's is the same away from exact predictions.
    assert float(found['decode.loss_silog']) == pytest.approx(
        2 * float(found['decode.loss_up']), rel=1e-4
    )


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(max_depth=0.0), 'max_depth must be positive and finite, got 0.0'),
        (dict(num_classes=3), 'a depth head has no num_classes, got 3'),
    ],
)
def test_bad_settings(wrong, words):
    from mmgap.models import ConvDepthHead

    settings = dict(CONV['decode_head'], max_depth=10.0, **{'loss_decode': []})
    del settings['type']
    with pytest.raises(ValueError, match=words):
        ConvDepthHead(**{**settings, **wrong})


@pytest.mark.skipif(
    'mmcv' in {d.metadata['Name'] for d in importlib.metadata.distributions()},
    reason='the full mmcv has the operations',
)
def test_missing_operations_say_so_when_called():
    from mmcv.ops import sigmoid_focal_loss
    from mmcv.utils.ext_loader import check_ops_exist

    assert not check_ops_exist()
    with pytest.raises(RuntimeError, match='is an operation of the full mmcv'):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25)


def test_metres_are_exact_under_autocast():
    """In bfloat16 metres would come in steps of 0.4 %, and the sigmoid would reach its bound."""
    model = build(CONV, dict(type='mmgap.MaskedL1Loss')).eval()
    model.decode_head.conv_seg.bias.data.fill_(8.0)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        features = model.extract_feat(torch.rand(1, 3, 64, 64))
        assert features[0].dtype == torch.bfloat16
        metres = model.decode_head(features)
    assert metres.dtype == torch.float32 and metres.max() < 20
