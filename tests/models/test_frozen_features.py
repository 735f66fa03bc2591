# SPDX-License-Identifier: Apache-2.0
"""A backbone that sees each image once, against the backbone itself."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS

import mmgap.models  # noqa: F401
from mmgap.models import frozen_features

BACKBONE = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
pytestmark = pytest.mark.usefixtures('on_cpu', 'no_memories')


@pytest.fixture
def no_memories(monkeypatch) -> None:
    monkeypatch.setattr(frozen_features, '_MEMORIES', {})


def frozen(seed: int = 0, **settings):
    """With statistics unlike those of a batch; it notes how many images its backbone is given."""
    import mmpretrain.models  # noqa: F401

    torch.manual_seed(seed)
    network = MODELS.build(dict(type='mmgap.FrozenFeatures', backbone=BACKBONE, **settings))
    network.init_weights()
    for name, buffer in network.backbone.named_buffers():
        if name.endswith('running_mean'):
            buffer.uniform_(-0.3, 0.3)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    network.seen = []
    network.backbone.register_forward_pre_hook(lambda _, args: network.seen.append(len(args[0])))
    return network


def pictures(count: int, seed: int = 0):
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def plainly(network, images):
    """What the backbone says, averaged over places."""
    network.backbone.eval()
    return network.backbone(images)[-1].mean(dim=(2, 3))


def test_each_image_goes_through_once():
    network, images = frozen(), pictures(5)
    with torch.no_grad():
        expected = plainly(network, images)
    assert expected.std(dim=0).mean() > 0.05  # images differ
    network.seen.clear()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for mode in (True, False):
        network.train(mode)
        assert not any(module.training for module in network.modules())
        for rows in ([0, 1, 0, 1], [1, 2, 0], [4, 4, 3], [0, 1, 2, 3, 4]):
            (found,) = network(images[rows])
            assert torch.allclose(found, expected[rows], atol=1e-5)
    assert network.seen == [2, 1, 2]


def test_models_with_the_same_weights_share_what_they_have_seen():
    first, second, other, images = frozen(), frozen(), frozen(1), pictures(3)
    (expected,) = first(images)
    assert torch.equal(second(images)[0], expected) and second.seen == []
    assert not torch.allclose(other(images)[0], expected, atol=1e-2) and other.seen == [3]
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(images)[0], expected) and other.seen == [3]
    other.backbone.bn1.running_mean.add_(1.0)  # its buffers count as well
    assert not torch.allclose(other(images)[0], expected, atol=1e-2) and other.seen == [3, 3]
    assert torch.equal(first(images)[0], expected) and first.seen == [3]
    pooled = frozen(neck=dict(type='mmpretrain.GeneralizedMeanPooling'))
    assert not torch.allclose(pooled(images)[0], expected, atol=1e-2) and pooled.seen == [3]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        first(images)
    assert first.seen == [3, 3]  # of another precision


def test_gradient_to_the_image():
    network = frozen()
    network(pictures(2))  # remembered: a gradient needs the network all the same
    network.seen.clear()
    gradients = []
    for features in (lambda images: network(images)[0], lambda images: plainly(network, images)):
        images = pictures(2).requires_grad_()
        features(images).square().sum().backward()
        gradients.append(images.grad)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5) and gradients[0].abs().max() > 1e-3
    assert network.seen == [2, 2]


def test_the_longest_unused_are_forgotten():
    network, images = frozen(size=4), pictures(6)
    with torch.no_grad():
        expected = plainly(network, images)
    for rows, new in (
        ([0, 1, 2, 3], 4),
        ([0], 0),
        ([4], 1),  # in place of 1, since 0 was used again
        ([0, 2, 3, 4], 0),
        ([1], 1),
        ([0, 1, 2, 3, 4, 5], 2),  # more than it remembers: 0 and 5
        ([2, 3, 4, 5], 0),
    ):
        network.seen.clear()
        assert torch.allclose(network(images[rows])[0], expected[rows], atol=1e-5)
        assert sum(network.seen) == new, rows
        assert all(len(memory) <= 4 for memory in frozen_features._MEMORIES.values())
