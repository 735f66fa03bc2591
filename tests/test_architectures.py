# SPDX-License-Identifier: Apache-2.0
"""Every architecture of the toolboxes can be a target, but for the few with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# By the first word of their row, and what the row says.
NOT = dict(
    ChineseCLIP='multi-modal dependencies',
    DDRNet='only its own head takes',
    PIDNet='only its own head takes',
    VPD='missing 2 required positional arguments',
)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import architectures

    return architectures


def test_some(tool):
    from mmgap.compat import allow_mmcv_without_ops

    allow_mmcv_without_ops()
    for build in (
        lambda: tool.classifier('mobilenet-v3-small-050_3rdparty_in1k'),
        tool.timm_classifier,
        tool.hugging_face_classifier,
        lambda: tool.depth_model('ERFNet'),
    ):
        row = tool.evaluate(build)
        assert row['passes'], row['why']


def test_what_does_not_pass(tool):
    def zero():
        target = tool.hugging_face_classifier()
        for parameter in target.model.parameters():
            torch.nn.init.zeros_(parameter)
        return target

    rows = {
        'zero': tool.evaluate(zero),
        'wrong': tool.evaluate(lambda: tool.depth_model('NoBackbone')),
    }
    assert rows['zero']['why'] == 'the gradient is zero'
    assert rows['wrong']['why'].startswith('KeyError')
    text = tool.table({'Section': rows})
    assert '## Section: 0 of 2' in text and '| zero | HuggingFaceClassifier |' in text


@pytest.mark.slow  # minutes: two hundred networks in their own sizes
def test_all(tool):
    from mmgap.compat import allow_mmcv_without_ops

    allow_mmcv_without_ops()
    for section, rows in tool.candidates().items():
        for name, build in rows.items():
            row, expected = tool.evaluate(build), NOT.get(name.split()[0])
            assert row['passes'] == (expected is None), (section, name, row.get('why'))
            assert expected is None or expected in row['why']
