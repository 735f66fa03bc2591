# SPDX-License-Identifier: Apache-2.0
"""The Waterbirds config from end to end, on a miniature and with tiny weights of its classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmgap.prompts import load_prompts
from mmgap.synthesis import SamplePool
from tests.miniature import draw_waterbirds

ROOT = Path(__file__).parents[1]


def miniature_config(data: Path, weights: Path, work_dir: Path, **hook) -> Config:
    """``configs/gap_resnet50_waterbirds.py`` with small numbers; nothing else is changed."""
    config = Config.fromfile(ROOT / 'configs' / 'gap_resnet50_waterbirds.py')
    config.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'model.backbone.init_cfg': None,
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
        }
    )
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.dataset.data_root = str(data)
        loader.update(num_workers=0, persistent_workers=False, batch_size=8)
    settings = config.custom_hooks[0]
    settings.generator.update(model=str(weights), size=16, negative_prompt='a b')
    settings.search.update(
        steps=2, prompts_per_class=1, images_per_prompt=2, batch_size=4, holdout=2
    )
    settings.synthesis.update(num_inference_steps=2)
    settings.update(start=1, budget=6, **hook)
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory, tiny_sd):
    folder = tmp_path_factory.mktemp('waterbirds')
    data = draw_waterbirds(folder / 'data', per_group=4)
    runner = Runner.from_cfg(miniature_config(data, tiny_sd, folder / 'work'))
    runner.train()
    return folder / 'work'


def test_summary(run):
    summary = json.loads((run / 'gap' / 'summary.json').read_text())
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


def test_what_a_run_leaves(run):
    pool = SamplePool(run / 'gap' / 'pool')
    assert [sample.label for sample in pool.samples] == [0, 1] * 3
    assert len(load_prompts(run / 'gap' / 'prompts')) == 2
    assert (run / 'gap' / 'round_0.png').stat().st_size > 1000
    assert not list(run.glob('**/*.tmp'))
