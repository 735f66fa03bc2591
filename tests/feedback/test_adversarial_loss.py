# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from mmgap.feedback import AdversarialLoss, FeedbackBatch, adversarial_loss
from mmgap.feedback.base import total_feedback
from mmgap.targets import ClassOutput


def log_probabilities(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


REFERENCE = {
    'flip': lambda log_p, label, target: -log_p[1 - label],
    'untargeted': lambda log_p, label, target: log_p[label],
    'targeted': lambda log_p, label, target: -log_p[target],
    'uniform': lambda log_p, label, target: -log_p.mean(),
}


def batch(logits, labels):
    output = ClassOutput(logits, torch.zeros(len(labels)))
    numbers = range(len(labels))
    return FeedbackBatch(torch.zeros(len(labels), 1, 1), labels, numbers, numbers, output=output)


@pytest.mark.parametrize('mode', REFERENCE)
@pytest.mark.parametrize('scale', [1.0, 0.3])
def test_formulas(mode, scale):
    classes = 2 if mode == 'flip' else 5
    rng = np.random.default_rng(0)
    logits = 4 * rng.standard_normal((7, classes))
    labels = rng.integers(classes, size=7)
    expected = [
        REFERENCE[mode](log_p, label, 1)
        for log_p, label in zip(log_probabilities(scale * logits), labels, strict=True)
    ]
    target = 1 if mode == 'targeted' else None
    loss = AdversarialLoss(mode, target, logit_scale=scale, weight=3.0)
    values = loss(batch(torch.from_numpy(logits), torch.from_numpy(labels)))
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize('mode', REFERENCE)
def test_gradient(mode):
    torch.manual_seed(0)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(
        lambda x: adversarial_loss(x, labels, mode, target_class=0, logit_scale=0.7), logits
    )


@pytest.mark.parametrize('mode', ['flip', 'untargeted', 'targeted'])
def test_descent_makes_the_model_err(mode):
    logits, labels = torch.zeros(4, 2, requires_grad=True), torch.tensor([0, 0, 0, 0])
    loss = adversarial_loss(logits, labels, mode, target_class=1).sum()
    moved = logits - torch.autograd.grad(loss, logits)[0]
    assert (moved.argmax(dim=1) == 1).all()


def test_below_the_floor_there_is_no_gradient():
    logits = torch.tensor([[4.0, 0.0], [-3.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    plain = adversarial_loss(logits, labels, 'flip')
    values = AdversarialLoss('flip', floor=0.1)(batch(logits, labels))
    assert plain[1] < 0.1
    assert values[0] == plain[0] and values[1].item() == pytest.approx(0.1)
    grad = torch.autograd.grad(values.sum(), logits)[0]
    assert grad[0].abs().sum() > 0 and (grad[1] == 0).all()


def test_bad_settings():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    with pytest.raises(ValueError, match='needs two classes, the model has 3'):
        adversarial_loss(logits, labels, 'flip')
    for target in (None, 3, -1):
        with pytest.raises(ValueError, match=rf'\[0, 3\), got {target}'):
            adversarial_loss(logits, labels, 'targeted', target_class=target)
    with pytest.raises(ValueError, match="got 'sideways'"):
        adversarial_loss(logits, labels, 'sideways')
    with pytest.raises(ValueError, match="got 'sideways'"):
        AdversarialLoss('sideways')
    with pytest.raises(ValueError, match='needs target_class'):
        AdversarialLoss('targeted')
    with pytest.raises(ValueError, match="target_class=3 has no use with mode='untargeted'"):
        AdversarialLoss(target_class=3)
    with pytest.raises(ValueError, match='got 0'):
        AdversarialLoss(logit_scale=0)
    with pytest.raises(ValueError, match='floor=0.05 would switch'):
        AdversarialLoss('untargeted', floor=0.05)


def test_terms_of_one_class_are_told_apart_in_the_log():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    seen = batch(logits, torch.tensor([0, 1]))
    terms = [AdversarialLoss('flip'), AdversarialLoss('uniform'), AdversarialLoss('untargeted')]
    means = total_feedback(terms, seen).means
    assert list(means) == ['AdversarialLoss', 'AdversarialLoss 2', 'AdversarialLoss 3']
    for term, mean in zip(terms, means.values(), strict=True):
        assert float(mean) == pytest.approx(float(term(seen).mean()))
