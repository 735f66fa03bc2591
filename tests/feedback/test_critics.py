# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmgap.feedback import ClipCritic, ClipModel, ModelCritic, diversity
from mmgap.registry import TASK_UTILS
from tests.support.small_config import small_config
from tests.support.tiny import tiny_classifier

CLIP = dict(model='mmgap://toybirds-clip')


@pytest.fixture(scope='module')
def clip():
    return ClipModel(**CLIP)


def masks(*boxes, size=64):
    drawn = torch.zeros(len(boxes), 1, size, size, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(drawn, boxes, strict=True):
        mask[0, top:bottom, left:right] = True
    return drawn


def test_zero_shot_probability(clip):
    torch.manual_seed(0)
    images, labels = torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 1])
    critic = ClipCritic(CLIP, texts=['a lake', 'a forest'], margin=None)
    critic.prepare(('a', 'b'))
    found = critic(images, masks(*[(0, 5, 0, 5)] * 3), labels)
    with torch.no_grad():
        text = clip.encode_texts(['a lake', 'a forest'])
        logits = clip.model.logit_scale.exp() * clip.encode_images(images) @ text.t()
    torch.testing.assert_close(found, logits.softmax(1)[torch.arange(3), labels])


def test_sees_the_object_and_not_what_is_around_it():
    """With a margin, pixels outside the widened box do not matter; at the border it is cut off."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    boxes = masks((20, 30, 30, 50), (0, 10, 54, 64))
    critic = ClipCritic(CLIP, margin=0.25)
    critic.prepare(('landbird', 'waterbird'))
    labels = torch.tensor([0, 1])
    before = critic(images, boxes, labels)
    inside = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    inside[0, :, 25 - 15 : 25 + 15, 40 - 15 : 40 + 15] = True
    inside[1, :, :13, 52:] = True
    torch.testing.assert_close(critic(torch.where(inside, images, 0.3), boxes, labels), before)
    assert not torch.allclose(critic(torch.where(inside, 0.3, images), boxes, labels), before)


def test_sees_all_where_there_is_no_object():
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    found = []
    for margin in (0.2, None):
        critic = ClipCritic(CLIP, margin=margin)
        critic.prepare(('landbird', 'waterbird'))
        found.append(critic(images, masks((0, 0, 0, 0), (0, 0, 0, 0)), labels))
    torch.testing.assert_close(*found)


def test_model_critic_is_the_models_probability(tmp_path, device):
    model = tiny_classifier().to(device)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'critic.pth')
    config = small_config(tmp_path, tmp_path, tmp_path)
    config.dump(tmp_path / 'critic.py')
    critic = TASK_UTILS.build(
        dict(
            type='mmgap.ModelCritic',
            config=str(tmp_path / 'critic.py'),
            checkpoint=str(tmp_path / 'critic.pth'),
        )
    )
    critic.prepare(('a', 'b'))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    inputs = (images * 255).flip(1)  # the pipeline delivers BGR
    with torch.no_grad():
        logits = model.eval()(
            model.data_preprocessor(dict(inputs=inputs), False)['inputs'], mode='tensor'
        )
    expected = F.softmax(logits, dim=1)[torch.arange(4), labels]
    found = critic(images, masks(*[(0, 5, 0, 5)] * 4, size=32), labels)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match='has 2 classes, the data 3'):
        ModelCritic(str(tmp_path / 'critic.py'), str(tmp_path / 'critic.pth')).prepare('abc')


def test_diversity_is_the_mean_distance_of_pairs(clip):
    torch.manual_seed(0)
    images = torch.rand(5, 3, 64, 64) * torch.rand(5, 3, 1, 1)
    with torch.no_grad():
        features = clip.encode_images(images).double().cpu().numpy()
    pairs = [1 - features[i] @ features[j] for i in range(5) for j in range(5) if i != j]
    assert diversity(clip, images) == pytest.approx(np.mean(pairs), abs=1e-5)
    assert diversity(clip, images[:1].expand(3, -1, -1, -1)) == pytest.approx(0, abs=1e-5)


def test_bad_settings():
    with pytest.raises(ValueError, match=r'ClipCritic threshold must be in \[0, 1\], got 2'):
        ClipCritic(CLIP, threshold=2)
    with pytest.raises(ValueError, match='template must contain'):
        ClipCritic(CLIP, template='a bird')
    with pytest.raises(ValueError, match='margin must not be negative'):
        ClipCritic(CLIP, margin=-1)
    with pytest.raises(RuntimeError, match=r'call prepare\(\) first'):
        ModelCritic('critic.py', 'critic.pth').fingerprint()
    with pytest.raises(ValueError, match='1 texts for 2 classes'):
        ClipCritic(CLIP, texts=['a']).prepare(('a', 'b'))
