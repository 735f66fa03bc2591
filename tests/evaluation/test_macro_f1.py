# SPDX-License-Identifier: Apache-2.0
"""Macro F1 against plain loops, with classes that are absent or never predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from mmgap.evaluation import MacroF1
from mmgap.loop import group_report

CLASSES = ('background', 'cattle', 'elephants', 'zebras', 'giraffes')


def reference(predicted, labels):
    """Harmonic mean of precision and recall of each class among the labels."""
    scores = {}
    for name in sorted(set(labels)):
        hits = sum(p == name == t for p, t in zip(predicted, labels, strict=True))
        precision = hits / max(1, predicted.count(name))
        recall = hits / labels.count(name)
        scores[CLASSES[name]] = 2 * precision * recall / max(1e-12, precision + recall)
    return scores


@pytest.mark.parametrize('as_score', [False, True])
def test_macro_f1_over_present_classes(as_score):
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 97, p=[0.5, 0.3, 0.1, 0.1]).tolist()  # no giraffes
    predicted = np.where(rng.random(97) < 0.6, labels, rng.choice([0, 1, 2, 4], 97)).tolist()
    predicted = [0 if p == 2 else p for p in predicted]  # elephants are never predicted
    evaluator = Evaluator(MacroF1())
    evaluator.dataset_meta = dict(classes=CLASSES)
    for start in range(0, 97, 10):
        samples = []
        for p, t in zip(predicted[start : start + 10], labels[start : start + 10], strict=True):
            sample = DataSample().set_gt_label(t)
            score = torch.nn.functional.one_hot(torch.tensor(p), 5).float()
            samples.append(sample.set_pred_score(score) if as_score else sample.set_pred_label(p))
        evaluator.process(samples)
    metrics = evaluator.evaluate(97)
    expected = reference(predicted, labels)
    assert expected['elephants'] == 0 and 'giraffes' not in expected
    found = {name[3:]: score for name, score in metrics.items() if name.startswith('f1/')}
    assert found == pytest.approx(expected)
    assert metrics['f1_macro'] == pytest.approx(np.mean(list(expected.values())))
    assert metrics['accuracy'] == pytest.approx(np.mean(np.array(predicted) == labels))


def test_classes_of_one_name_are_told_apart():
    """As MMPretrain's names of ImageNet, which have `crane` and `maillot` twice."""
    metric = MacroF1()
    metric.dataset_meta = dict(classes=('crane', 'bag/case', 'crane'))
    found = metric.compute_metrics([(1, 0), (1, 1), (2, 2)])
    assert found['f1/crane (0)'] == 0 and found['f1/crane (2)'] == 1
    report = group_report(found)
    assert report['worst_group'] == 0 and list(report['groups']) == [
        'crane (0)',
        'bag/case',
        'crane (2)',
    ]


def test_agrees_with_wilds():
    metrics = pytest.importorskip('wilds.common.metrics.all_metrics')
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    theirs = metrics.F1(prediction_fn=None, average='macro').compute(
        torch.from_numpy(predicted), torch.from_numpy(labels), return_dict=False
    )
    ours = MacroF1().compute_metrics(list(zip(predicted.tolist(), labels.tolist(), strict=True)))
    assert ours['f1_macro'] == pytest.approx(float(theirs))
