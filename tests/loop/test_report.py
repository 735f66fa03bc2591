# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from mmgap.loop.report import group_report, summary_table


def test_report_and_table():
    metrics = {'worst_group': 0.1, 'mean': 0.5, 'group/a-b': 0.1, 'group/c-d': float('nan')}
    report = group_report(metrics)
    assert report['groups'] == {'a-b': 0.1, 'c-d': None} and report['adjusted'] is None
    other = group_report({'accuracy/top1': 91.0})
    assert other['metrics'] == {'accuracy/top1': 91.0} and other['groups'] == {}
    stock = {'single-label/recall_classwise': [1.0, 2.0], 'confusion_matrix/result': torch.eye(2)}
    other = group_report({'accuracy/top1': torch.tensor(91.0), 'loss': float('inf'), **stock})
    assert other['metrics'] == {'accuracy/top1': 91.0, 'loss': None}
    other = group_report({'accuracy/top1': 91.0})
    summary = dict(before=report, after=report, rounds=[], seconds=dict(total=1.0))
    assert '0.100' in summary_table(summary) and 'worst group' in summary_table(summary)
    plain = dict(before=other, after=None, rounds=[], seconds=dict(total=1.0))
    assert '91.000' in summary_table(plain)
