# SPDX-License-Identifier: Apache-2.0
"""Weights of samples against losses that are computed by hand."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import PixelData
from torch.nn import functional

from mmgap.injection import SampleWeights
from tests.support.tiny import tiny_classifier, tiny_depth_model

WEIGHTS = [0.0, 3.0, 0.5, 1.0]
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.2, num_classes=2)


def hooks_of(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize('smooth', [False, True], ids=['cross entropy', 'label smooth'])
def test_a_classifier(smooth):
    """A smoothed loss is made of another, and is weighted once."""
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    model = tiny_classifier()
    if smooth:
        model.head.loss_module = MODELS.build(SMOOTH)
    features = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    scores = 5 * model.head.fc(features)
    each = functional.cross_entropy(
        scores, labels, reduction='none', label_smoothing=0.2 * smooth
    ).detach()
    model.head.fc.weight.data *= 5
    model.head.fc.bias.data *= 5

    def loss() -> float:
        return float(model.head.loss((features,), samples)['loss'].detach())

    weights = SampleWeights(model)
    with weights.weighting(WEIGHTS):
        assert loss() == pytest.approx(float((each * torch.tensor(WEIGHTS)).sum() / 4), rel=1e-5)
    assert loss() == pytest.approx(float(each.mean()), rel=1e-5)
    with weights.weighting([2.0] * 4):  # others in the next batch
        assert loss() == pytest.approx(2 * float(each.mean()), rel=1e-5)
    assert hooks_of(model) == 0
    with pytest.raises(ValueError, match='3 weights are given for 4 samples'):
        with weights.weighting([1.0] * 3):
            loss()
    assert hooks_of(model) == 0 and loss() == pytest.approx(float(each.mean()), rel=1e-5)


def test_a_depth_model():
    model = tiny_depth_model().eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=rng)
    depth = 1 + 10 * torch.rand(4, 1, 32, 32, generator=rng)
    depth[:, :, :4] = 0
    depth[3] = 0  # known nowhere: it counts in no mean
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_depth_map=PixelData(data=one)) for one in depth]
    with torch.no_grad():
        told = model.decode_head(model.extract_feat(images))
        told = functional.interpolate(told, (32, 32), mode='bilinear')
        each = torch.stack(
            [(a - b)[b > 0].abs().mean() for a, b in zip(told[:3], depth[:3], strict=True)]
        )
        with SampleWeights(model).weighting(WEIGHTS):
            found = model(images, samples, mode='loss')['decode.loss_l1']
        plain = model(images, samples, mode='loss')['decode.loss_l1']
    expected = (each * torch.tensor(WEIGHTS[:3])).sum() / 3
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert float(plain) == pytest.approx(float(each.mean()), rel=1e-4)
    assert hooks_of(model) == 0


def test_a_loss_without_weights():
    class PlainLoss(torch.nn.Module):
        def forward(self, scores, labels, avg_factor=None):
            return functional.cross_entropy(scores, labels)

    model = tiny_classifier()
    model.head.loss_module = PlainLoss()
    words = r"losses of ImageClassifier \(\['PlainLoss'\]\) take no weights .*refit with real=0"
    with pytest.raises(ValueError, match=words):
        SampleWeights(model)
    with pytest.raises(ValueError, match=r'losses of Linear \(none found\) take no weights'):
        SampleWeights(torch.nn.Linear(2, 2))
