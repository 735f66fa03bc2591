# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from tests.support.miniature import draw_waterbirds

META_KEYS = ('sample_idx', 'img_path', 'group')


def run_test(tmp_path: Path, meta_keys: tuple[str, ...]) -> tuple[dict[str, float], list]:
    """Tests an untrained stock classifier; returns the metrics and the predictions."""
    root = draw_waterbirds(tmp_path / 'data', per_group=3)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackInputs', meta_keys=meta_keys),
    ]
    dataset = dict(type='mmgap.Waterbirds', data_root=str(root), split='test', pipeline=pipeline)
    runner = Runner(
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=64),
        ),
        data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[64.0] * 3, to_rgb=True),
        work_dir=str(tmp_path / 'work'),
        test_dataloader=dict(
            batch_size=5,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dataset,
        ),
        test_cfg=dict(),
        test_evaluator=[dict(type='mmgap.GroupAccuracy'), dict(type='Accuracy')],
        default_scope='mmpretrain',
        experiment_name=f'group_accuracy_{tmp_path.name}',
        log_level='WARNING',
        randomness=dict(seed=0),
    )
    seen = []
    metric = runner.test_evaluator.metrics[0]
    process = metric.process

    def record(data_batch, data_samples) -> None:
        seen.extend(data_samples)
        process(data_batch, data_samples)

    metric.process = record
    return runner.test(), seen


@pytest.fixture(autouse=True)
def scope_is_put_back():
    yield
    DefaultScope._instance_dict.clear()


def test_stock_classifier_is_measured_by_the_runner(tmp_path: Path) -> None:
    metrics, seen = run_test(tmp_path, META_KEYS)
    assert len(seen) == 12
    for name, group in zip(
        ('landbird-land', 'landbird-water', 'waterbird-land', 'waterbird-water'),
        range(4),
        strict=True,
    ):
        members = [item for item in seen if item['group'] == group]
        hits = [int(item['pred_label']) == int(item['gt_label']) for item in members]
        assert metrics[f'group/{name}'] == pytest.approx(sum(hits) / 3)
    # Balanced groups: their mean is the plain accuracy, which MMPretrain gives in percent.
    assert metrics['mean'] == pytest.approx(metrics['accuracy/top1'] / 100)


def test_default_pack_inputs_drops_the_group_and_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"meta_keys=\('sample_idx', 'img_path', 'group'\)"):
        run_test(tmp_path, META_KEYS[:2])
