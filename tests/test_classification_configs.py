# SPDX-License-Identifier: Apache-2.0
"""The classification configs from end to end, on miniatures, with tiny weights of their classes."""

from __future__ import annotations

import json

import pytest
from mmengine.runner import Runner

from mmgap.datasets.iwildcam import CLASSES
from mmgap.pool import SamplePool
from mmgap.prompts import load_prompts
from tests.support.configs import classification_config
from tests.support.miniature import convert_iwildcam, draw_iwildcam, draw_waterbirds


def test_summary(waterbirds_run):
    summary = json.loads((waterbirds_run / 'work' / 'gap' / 'summary.json').read_text())
    for moment in ('before', 'after'):
        assert set(summary[moment]['groups']) == {
            'landbird-land',
            'landbird-water',
            'waterbird-land',
            'waterbird-water',
        }
        groups = summary[moment]['groups'].values()
        assert summary[moment]['worst_group'] == min(groups)
        assert summary[moment]['mean'] == pytest.approx(sum(groups) / 4)
        assert 0 <= summary[moment]['adjusted'] <= 1
    (first,) = summary['rounds']
    assert first['images'] == 6 and {p['class'] for p in first['prompts']} == {
        'landbird',
        'waterbird',
    }
    assert set(first['prompts'][0]) >= {
        'id',
        'class',
        'target_loss_before',
        'target_loss_after',
        'accuracy_before',
        'accuracy_after',
        'steps',
    }
    assert set(first['seconds']) == {'search', 'synthesis'} and summary['seed'] == 0
    assert summary['versions']['torch'] and summary['seconds']['total'] > 0


def test_what_a_run_leaves(waterbirds_run):
    run = waterbirds_run / 'work'
    pool = SamplePool(run / 'gap' / 'pool')
    assert [sample.label for sample in pool.samples] == [0, 1] * 3
    assert len(load_prompts(run / 'gap' / 'prompts')) == 2
    assert (run / 'gap' / 'round_0.png').stat().st_size > 1000
    assert not list(run.glob('**/*.tmp'))


@pytest.mark.smoke
def test_vit(tmp_path, tiny_sd):
    data = draw_waterbirds(tmp_path / 'data', per_group=2)
    config = classification_config('ap_vit-base-p16_waterbirds', data, tiny_sd, tmp_path / 'work')
    Runner.from_cfg(config).train()
    summary = json.loads((tmp_path / 'work' / 'gap' / 'summary.json').read_text())
    assert len(summary['after']['groups']) == 4 and summary['rounds'][0]['images'] == 6


@pytest.mark.parametrize(
    'name',
    [
        # 40 s: a whole ResNet-50
        pytest.param('gap_resnet50_iwildcam', marks=pytest.mark.slow),
        'gap_vit-base-p16_iwildcam',
    ],
)
def test_iwildcam(name, tmp_path, tiny_sd):
    source = draw_iwildcam(tmp_path / 'wilds', sequences=2)
    data = tmp_path / 'data'
    convert_iwildcam(source, data).check()
    config = classification_config(name, data, tiny_sd, tmp_path / 'work', budget=7)
    # One of two sequences of each place guides.
    for settings in (config.test_dataloader.dataset, config.custom_hooks[0].feedback[1].images):
        settings.guidance_share = 0.5
    Runner.from_cfg(config).train()
    gap = tmp_path / 'work' / 'gap'
    after = json.loads((gap / 'summary.json').read_text())['after']
    assert set(after['groups']) == set(CLASSES) and after['measure'] == 'f1'
    assert after['mean'] == pytest.approx(sum(after['groups'].values()) / 7)
    pool = SamplePool(gap / 'pool')
    assert [sample.label for sample in pool.samples] == list(range(7))
    assert {prompt.label for prompt in load_prompts(gap / 'prompts')} == {None}
