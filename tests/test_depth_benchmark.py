# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool on ToyDepth, with few steps and images."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config

from mmgap.registry import TASK_UTILS
from tests.support.quick_benchmark import QUICK, ROOT, run

METHODS = 'none gap style real'.split()
MORE = 'none agnostic random prompts guided ap ap-sdedit'.split()
SHIFTS = ['clear', 'night', 'fog', 'corruptions']
QUICK_DEPTH = [
    *(change for change in QUICK if 'evaluate' not in change),
    'test_dataloader.dataset.size=16',
    'custom_hooks.0.synthesis.aim_images=1',
    'benchmark.evaluate.val.indices=[400,401,402]',
]


@pytest.mark.slow
@pytest.mark.parametrize('layers', ['all', 'last'])
def test_quick_benchmark(layers, tmp_path):
    methods = METHODS if layers == 'all' else MORE
    options = ['--methods', *methods, '--budgets', '4', '--seeds', '0', '--layers', layers]
    config = 'gap_resnet18_toydepth'
    changes = [c for c in QUICK_DEPTH if 'guided' not in c]
    done = run(tmp_path, *options, '--cfg-options', *changes, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / 'results.json').read_text())
    assert [cell['method'] for cell in cells] == methods
    for cell in cells:
        assert list(cell['abs_rel']) == list(cell['rmse']) == SHIFTS
        assert cell['worst_group'] == max(cell['abs_rel'].values())
    text = (tmp_path / 'results.md').read_text()
    assert 'AbsRel in percent (lower is better)' in text
    if layers == 'last':
        return
    by_name = {cell['method']: cell for cell in cells}
    change = 100 * (by_name['gap']['abs_rel']['night'] / by_name['none']['abs_rel']['night'] - 1)
    (table,) = [part for part in text.split('\n\n') if part.startswith('| whole network, night |')]
    (shown,) = [row.split('|')[2] for row in table.splitlines() if row.startswith('| none |')]
    logarithm = float(shown.split('±')[0])  # equal to the change in the first order
    assert logarithm == pytest.approx(change, rel=0.25, abs=0.2)
    again = [*options, '--report', 'val', '--cfg-options', *changes]
    assert run(tmp_path, *again, config=config).returncode == 0
    there = json.loads((tmp_path / 'val' / 'results.json').read_text())
    assert list(there[0]['abs_rel']) == list(there[0]['rmse']) == SHIFTS[:3]
    assert there[0]['rmse'] == cells[0]['others']['val']['rmse']


def test_the_generator_knows_all_words():
    config = Config.fromfile(ROOT / 'configs' / 'gap_resnet18_toydepth.py')
    generator = TASK_UTILS.build(config.custom_hooks[0].generator)
    sentences = list(config.custom_hooks[0].search.init)
    for method in config.benchmark.methods.values():
        sentences += method.get('texts', [])
        for term in method.get('feedback', []):
            sentences += term.get('descriptions', [])
    assert sentences
    for sentence in sentences:  # unknown words are refused
        assert generator.prompts.text_prompt(sentence, 'sentence').template
