# SPDX-License-Identifier: Apache-2.0
"""The benchmark on ToyDepth, with few steps and images."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config

from mmgap.registry import TASK_UTILS
from tests.support.benchmarks import DEPTH, ROOT, run_benchmark

CONFIG = ROOT / 'configs' / 'benchmark' / 'toydepth_resnet18.py'
METHODS = {
    'all': 'none gap style real'.split(),
    'last': 'none agnostic random prompts gp ap ap-sdedit'.split(),
}
SHIFTS = ['clear', 'night', 'fog', 'corruptions']


@pytest.mark.parametrize('layers', ['all', pytest.param('last', marks=pytest.mark.slow)])  # 45 s
def test_cells_and_tables(layers, tmp_path):
    methods = METHODS[layers]
    options = ['--methods', *methods, '--budgets', 4, '--seeds', 0, '--layers', layers]
    options += ['--cfg-options', *DEPTH]
    run_benchmark(tmp_path, *options, config=CONFIG).check()
    cells = json.loads((tmp_path / 'results.json').read_text())
    assert [cell['method'] for cell in cells] == methods
    for cell in cells:
        assert list(cell['abs_rel']) == list(cell['rmse']) == SHIFTS
        assert cell['worst_group'] == max(cell['abs_rel'].values())
    text = (tmp_path / 'results.md').read_text()
    assert 'AbsRel in percent (lower is better)' in text
    if layers == 'last':
        return
    run_benchmark(tmp_path, *options, '--report', 'val', config=CONFIG).check()
    there = json.loads((tmp_path / 'val' / 'results.json').read_text())
    assert list(there[0]['abs_rel']) == list(there[0]['rmse']) == SHIFTS[:3]
    assert there[0]['rmse'] == cells[0]['others']['val']['rmse']


def test_the_generator_knows_all_words():
    config = Config.fromfile(CONFIG)
    generator = TASK_UTILS.build(config.custom_hooks[0].generator)
    sentences = list(config.custom_hooks[0].search.init)
    for method in config.benchmark.methods.values():
        sentences += method.get('texts', [])
        for term in method.get('feedback', []):
            sentences += term.get('descriptions', [])
    assert sentences
    for sentence in sentences:  # unknown words are refused
        assert generator.prompts.text_prompt(sentence, 'sentence').template
