# SPDX-License-Identifier: Apache-2.0
"""The group metrics are those of the package wilds, where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from mmgap.datasets import Waterbirds
from mmgap.evaluation import GroupAccuracy, MacroF1
from tests.support.miniature import draw_waterbirds

pytest.importorskip('wilds', reason='pip install wilds')
TRAIN_COUNTS = (3498, 184, 56, 1057)  # of the real Waterbirds, fixed in wilds


def scatter(src, index, dim_size, reduce):
    """What wilds takes from torch_scatter, which few have built."""
    total = torch.zeros(dim_size).index_add(0, index, src)
    return total if reduce == 'sum' else total / torch.bincount(index, minlength=dim_size)


def evaluate(metric, predicted, labels, group=None, **metainfo):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = metainfo
    samples = []
    for i, (prediction, label) in enumerate(zip(predicted, labels, strict=True)):
        sample = DataSample().set_gt_label(int(label)).set_pred_label(int(prediction))
        if group is not None:
            sample.set_field(int(group[i]), 'group', field_type='metainfo')
        samples.append(sample)
    evaluator.process(samples, None)
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize('seed', range(3))
def test_waterbirds(seed, tmp_path, monkeypatch):
    if importlib.util.find_spec('torch_scatter') is None:
        stand_in = types.SimpleNamespace(scatter=scatter)
        monkeypatch.setitem(sys.modules, 'torch_scatter', stand_in)
    from wilds.datasets.waterbirds_dataset import WaterbirdsDataset

    root = draw_waterbirds(tmp_path / 'waterbirds_v1.0', per_group=12)
    (root / 'RELEASE_v1.0.txt').touch()
    theirs = WaterbirdsDataset(root_dir=str(tmp_path), download=False)
    test = theirs.get_subset('test')
    labels = test.y_array
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, 2, labels.shape, generator=generator)
    expected, _ = theirs.eval(predicted, labels, test.metadata_array)
    ours = Waterbirds(str(root), 'test')
    infos = [ours.get_data_info(i) for i in range(len(ours))]
    assert [info['gt_label'] for info in infos] == labels.tolist()
    found = evaluate(
        GroupAccuracy(),
        predicted,
        labels,
        [info['group'] for info in infos],
        **{**ours.metainfo, 'train_group_counts': TRAIN_COUNTS},
    )
    assert found['adjusted'] == pytest.approx(float(expected['adj_acc_avg']), rel=1e-5)
    assert found['worst_group'] == pytest.approx(float(expected['acc_wg']), rel=1e-5)
    for name in ours.metainfo['groups']:
        label, place = name.split('-')
        value = float(expected[f'acc_y:{label}_background:{place}'])
        assert found[f'group/{name}'] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize('seed', range(3))
def test_macro_f1(seed):
    from wilds.common.metrics.all_metrics import F1

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (200,), generator=generator)  # two of seven classes are absent
    predicted = torch.where(
        torch.rand(200, generator=generator) < 0.5,
        labels,
        torch.randint(0, 7, (200,), generator=generator),
    )
    expected = F1(average='macro').compute(predicted, labels)['F1-macro_all']
    assert evaluate(MacroF1(), predicted, labels)['f1_macro'] == pytest.approx(float(expected))
