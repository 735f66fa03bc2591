# SPDX-License-Identifier: Apache-2.0
"""Depth models as targets: equal to the toolbox's own forward, differentiable, put back after."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import PixelData

from mmgap.feedback import (
    AdversarialLoss,
    DepthAdversarialLoss,
    FeedbackBatch,
    masked_l1,
    scale_shift_invariant_mae,
)
from mmgap.targets import ClassOutput, DepthTarget
from tests.support.tiny import tiny_classifier, tiny_depth_config, tiny_depth_model

pytestmark = pytest.mark.smoke

SIZE = (32, 32)


@pytest.fixture
def judged():
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=rng)
    depth = 0.5 + 9 * torch.rand(3, 1, 32, 32, generator=rng)
    depth[:, :, :4] = 0
    return tiny_depth_model(), images, depth


def as_the_toolbox(model, images, depth):
    """Depth and loss of each image, through the model's own modes, one by one."""
    from mmseg.structures import SegDataSample

    predictions, losses = [], []
    for image, one in zip(images, depth, strict=True):
        sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE))
        sample.gt_depth_map = PixelData(data=one)
        bgr = (image * 255).flip(0)
        data = model.data_preprocessor(dict(inputs=[bgr], data_samples=[sample]), False)
        losses.append(sum(model(**data, mode='loss').values()))
        predictions.append(model(**data, mode='predict')[0].pred_depth_map.data)
    return torch.stack(predictions), torch.stack(losses)


def test_equals_the_toolbox(judged):
    model, images, depth = judged
    model.train()
    target = DepthTarget(model, input_size=SIZE)
    with target.frozen():
        output = target(images, depth)
    assert model.training
    model.eval()
    with torch.no_grad():
        prediction, loss = as_the_toolbox(model, images, depth)
    torch.testing.assert_close(output.prediction, prediction, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-5)
    known = depth > 0
    for i, share in enumerate(output.hits().tolist()):
        p, d = prediction[i][known[i]], depth[i][known[i]]
        assert share == pytest.approx(float((torch.maximum(p / d, d / p) < 1.25).float().mean()))


@pytest.mark.parametrize('kind', ['model', 'l1', 'ssi'])
def test_gradient_reaches_the_image_and_nothing_stays(kind, judged):
    model, images, depth = judged
    model.double()
    target, term = DepthTarget(model, input_size=SIZE), DepthAdversarialLoss(kind)
    images = images.double().requires_grad_()

    def loss(pixels):
        draft = FeedbackBatch(torch.zeros(3, 1, 1), torch.zeros(3), [0] * 3, [0] * 3, pixels)
        draft.output = target(pixels, depth.double())
        return term(draft)

    with target.frozen():
        value = loss(images)
        (gradient,) = torch.autograd.grad(value.sum(), images)
        direction = gradient / gradient.norm()
        with torch.no_grad():
            ends = [loss(images + sign * 1e-5 * direction).sum() for sign in (1, -1)]
    assert value.shape == (3,) and (value < 0).all()
    assert float(gradient.norm()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-3)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_terms_are_the_errors_by_name(judged):
    model, images, depth = judged
    target = DepthTarget(model, input_size=SIZE)
    with torch.no_grad(), target.frozen():
        output = target(images, depth)
    draft = FeedbackBatch(torch.zeros(3, 1, 1), torch.zeros(3), [0] * 3, [0] * 3, images, output)
    expected = dict(
        model=output.loss,
        l1=masked_l1(output.prediction, depth),
        ssi=scale_shift_invariant_mae(output.prediction, depth),
    )
    for kind, error in expected.items():
        torch.testing.assert_close(DepthAdversarialLoss(kind)(draft), -error)
    middle = float(expected['l1'].median())
    with pytest.raises(ValueError, match="take 'mmgap.DepthAdversarialLoss' for depth"):
        AdversarialLoss()(draft)
    floored = DepthAdversarialLoss('l1', floor=-middle)(draft)
    assert float(floored.min()) == pytest.approx(-middle) and float(floored.max()) > -middle


def test_other_sizes(judged):
    model, images, depth = judged
    target = DepthTarget(model, input_size=(48, 64))
    with torch.no_grad(), target.frozen():
        output = target(images, depth)
    assert output.prediction.shape == output.depth.shape == (3, 1, 48, 64)
    assert set(output.depth.unique().tolist()) <= set(depth.unique().tolist())


def test_what_does_not_fit(judged):
    _, images, depth = judged
    classifier = DepthTarget(tiny_classifier(), input_size=SIZE)
    with pytest.raises(ValueError, match='needs a DepthEstimator .* is a ImageClassifier'):
        classifier(images, depth)
    output = ClassOutput(torch.zeros(3, 2), torch.zeros(3))
    draft = FeedbackBatch(torch.zeros(3, 1, 1), torch.zeros(3), [0] * 3, [0] * 3, images, output)
    with pytest.raises(ValueError, match="take 'mmgap.AdversarialLoss' for classes"):
        DepthAdversarialLoss()(draft)
    with pytest.raises(ValueError, match="loss must be one of .* got 'l2'"):
        DepthAdversarialLoss('l2')
    with pytest.raises(ValueError, match='floor=0.1 would switch the term off'):
        DepthAdversarialLoss(floor=0.1)


def test_critic_takes_the_share_that_another_model_sees_alike(judged, tmp_path):
    from mmgap.feedback import DepthCritic

    model, images, depth = judged
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'other.pth')
    config = tmp_path / 'other.py'
    config.write_text(
        "custom_imports = dict(imports=['mmgap', 'mmgap.models'])\n"
        f'model = {tiny_depth_config()!r}\n'
        "default_scope = 'mmseg'\n"
        'test_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32))]))\n"
    )
    critic = DepthCritic(str(config), str(tmp_path / 'other.pth'), threshold=0.9)
    critic.prepare(('scene',))
    target = DepthTarget(model, SIZE)
    with torch.no_grad(), target.frozen():
        expected = target(images, depth).hits()
        seen = target(images, depth).prediction
    seen_alike = critic(images, depth > 0, depth).cpu()  # where MMEngine puts models
    torch.testing.assert_close(seen_alike, expected.cpu(), rtol=0, atol=0.01)
    agreed = critic(images, depth > 0, seen)
    assert agreed.tolist() == [1, 1, 1] and critic.keeps(1.0)
    assert not critic.keeps(float(expected.max()))
    other = DepthCritic(str(config), str(tmp_path / 'other.pth'))
    other.prepare(('scene',))
    assert critic.fingerprint() == other.fingerprint()
    next(other._target.model.parameters()).data.add_(1)
    assert critic.fingerprint() != other.fingerprint()


def test_models_that_ask_for_a_category_are_refused(judged):
    model, images, depth = judged
    model.backbone.class_embed_select = True  # as MMSegmentation's VPD has it
    with pytest.raises(ValueError, match='class_embed_select=True asks for the category'):
        DepthTarget(model, SIZE)(images, depth)
