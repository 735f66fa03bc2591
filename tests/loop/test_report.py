# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re

import pytest
import torch

from mmgap.loop.report import drawing_evaluations, group_report, round_report, summary_table
from mmgap.pool import SamplePool
from tests.support.pools import ABOUT, picture


def test_report_and_table():
    metrics = {'worst_group': 0.1, 'mean': 0.5, 'group/a-b': 0.1, 'group/c-d': float('nan')}
    report = group_report(metrics)
    assert report['groups'] == {'a-b': 0.1, 'c-d': None} and report['adjusted'] is None
    for prefix in ('', 'waterbirds/', 'group/', 'a/f1/'):
        names = {'group/day/rain': 0.1, 'group/mean': 0.2, 'mean': 0.3, 'worst_group': 0.1}
        slashes = group_report({prefix + name: value for name, value in names.items()})
        assert slashes['groups'] == {'day/rain': 0.1, 'mean': 0.2}
        assert (slashes['worst_group'], slashes['mean']) == (0.1, 0.3)
        names = {'f1/cat': 0.4, 'f1/a/dog': 0.8, 'f1_macro': 0.6, 'accuracy': 0.1}
        classes = group_report({prefix + name: value for name, value in names.items()})
        assert classes['groups'] == {'cat': 0.4, 'a/dog': 0.8}
        assert (classes['worst_group'], classes['mean']) == (0.4, 0.6)
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


def test_what_images_cost(tmp_path):
    """Those to aim by and dropped ones included; of older versions nothing is known."""
    pool = SamplePool(tmp_path)
    costs = [(0, 30.1, True), (0, 30.1, False), (0, None, True), (1, 7.0, True), (0, 0.3, True)]
    for number, cost, kept in costs:
        about = {**ABOUT, 'round': number, 'kept': kept, 'evaluations': cost}
        pool.append(picture(0), **about)
    assert drawing_evaluations(pool, 0) == pytest.approx(60.5)
    (tmp_path / 'aim_0.json').write_text(json.dumps(dict(rates=[], evaluations=12.25)))
    (tmp_path / 'aim_1.json').write_text(json.dumps(dict(rates=[])))
    assert [drawing_evaluations(pool, i) for i in range(3)] == [pytest.approx(72.75), 7.0, 0.0]
    report = round_report(pool, 0)
    assert (report['images'], report['dropped']) == (3, 1)
    assert report['evaluations'] == pytest.approx(72.75)


@pytest.mark.parametrize(
    'searched, drawn, images, said',
    [
        ([60.0, 40.0], 50.0, 3, ['50']),
        ([], 50.0, 4, ['12']),
        ([None], 50.0, 5, []),  # a search by an older version
        ([60.0], 0.0, 3, []),
        ([60.0], None, 3, []),
        ([60.0], 50.0, 0, []),
    ],
)
def test_the_table_tells_the_cost_of_an_image(searched, drawn, images, said):
    facts = dict(id='p', target_loss_before=1, target_loss_after=2)
    facts |= dict(accuracy_before=1, accuracy_after=0)
    round_ = dict(images=images, seconds=dict(search=1.0, synthesis=2.0), evaluations=drawn)
    round_['prompts'] = [dict(facts, evaluations=count) for count in searched]
    for about in (round_, *round_['prompts']):
        if about['evaluations'] is None:
            del about['evaluations']
    table = summary_table(dict(before=None, after=None, rounds=[round_], seconds=dict(total=3.0)))
    assert re.findall(r'; (\d+) network evaluations an image', table) == said
