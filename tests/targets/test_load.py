# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as people have them."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmgap.targets.load import check_readable, fitting_share, load_model
from tests.support.tiny import tiny_classifier

BACKBONE = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
HEAD = dict(type='LinearClsHead', num_classes=2, in_channels=64)
MODEL = dict(
    type='ImageClassifier', backbone=BACKBONE, neck=dict(type='GlobalAveragePooling'), head=HEAD
)


@pytest.fixture(scope='module')
def state() -> dict:
    return tiny_classifier().state_dict()


def save(tmp_path, checkpoint, **settings) -> str:
    torch.save(checkpoint, tmp_path / 'a.pth', **settings)
    return str(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'kept',
    [
        lambda state: state,
        lambda state: dict(state_dict=state, optimizer={}, meta=dict(epoch=np.int64(3))),
        lambda state: dict(state_dict={f'module.{k}': v for k, v in state.items()}),
        lambda state: dict(state_dict={**state, 'auxiliary_head.bias': torch.zeros(2)}),
        lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
        lambda state: dict(state_dict=state, message_hub=HistoryBuffer([1.0], [1])),
        # What data sets say of themselves is in there too.
        lambda state: dict(state_dict=state, dataset_meta=dict(palette=np.zeros(3, np.uint8))),
        lambda state: dict(state_dict=state, dataset_meta=dict(classes=[*np.unique(['a', 'b'])])),
    ],
    ids=['bare', 'meta', 'module', 'more', 'half', 'history', 'palette', 'names'],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_what_holds_all_weights_is_taken(kept, zipped, state, tmp_path):
    path = save(tmp_path, kept(state), _use_new_zipfile_serialization=zipped)
    check_readable(path)
    model = load_model(Config(dict(model=MODEL)), path)
    assert torch.allclose(model.head.fc.weight.cpu(), state['head.fc.weight'], atol=1e-3)
    assert fitting_share(model, dict(checkpoint=path)) == 1


def test_a_part_of_a_checkpoint(state, tmp_path):
    backbone = tiny_classifier().backbone
    path = save(tmp_path, dict(state_dict=state))
    for prefix in ('backbone', 'backbone.'):
        assert fitting_share(backbone, dict(checkpoint=path, prefix=prefix)) == 1
    assert fitting_share(backbone, dict(checkpoint=path, prefix='neck.')) == 0


@pytest.mark.parametrize(
    'kept, error, words',
    [
        (lambda state: dict(model=state, epoch=3), ValueError, "it holds ['model', 'epoch']"),
        (lambda state: [state], ValueError, 'it holds list'),
        (
            lambda state: dict(state_dict=state, args=argparse.Namespace(lr=1)),
            ValueError,
            'cannot be read: it holds argparse.Namespace, which might run code',
        ),
        (lambda state: tiny_classifier(), ValueError, 'ImageClassifier, which might run code'),
        (
            lambda state: {k: v for k, v in state.items() if k.startswith('backbone.')},
            RuntimeError,
            'does not fit the ImageClassifier',
        ),
        (lambda state: tiny_classifier(3).state_dict(), RuntimeError, 'size mismatch for head.fc'),
    ],
    ids=['model', 'list', 'namespace', 'whole', 'backbone', 'head'],
)
def test_what_does_not_is_refused(kept, error, words, state, tmp_path):
    path = save(tmp_path, kept(state))
    with pytest.raises(error, match=re.escape(words)) as caught:
        load_model(Config(dict(model=MODEL)), path)
    assert path in str(caught.value) and 'truncated' not in str(caught.value)


def test_files_that_are_no_checkpoint(state, tmp_path):
    path = save(tmp_path, state)
    data = (tmp_path / 'a.pth').read_bytes()
    for broken in (data[:3000], b'<html>not found</html>', b''):
        (tmp_path / 'a.pth').write_bytes(broken)
        with pytest.raises(ValueError, match=rf'{path} cannot be read: .*truncated'):
            check_readable(path)
    save_file(state, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match=f'write mmgap://{tmp_path}/a.safetensors'):
        check_readable(str(tmp_path / 'a.safetensors'))
