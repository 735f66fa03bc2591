# SPDX-License-Identifier: Apache-2.0
"""Tables of depth, whose groups are shifts and whose measure is an error, and of the images."""

from __future__ import annotations

import json
import math

import pytest

from mmgap.benchmark.figures import interval, on_split
from mmgap.benchmark.report import _latest, spread, write_report
from mmgap.files import write_json

# AbsRel by method and seed.
ERRORS = {'none': [0.20, 0.30], 'real': [0.10, 0.12], 'gap': [0.15, 0.24]}


def cell(method: str, seed: int, layers: str = 'all', **own: float) -> dict:
    night = ERRORS[method][seed]
    groups = dict(clear=night / 2, night=night)
    figures = dict(groups=groups, worst_group=night, mean=0.75 * night, measure='abs_rel')
    others = {name: dict(worst_group=night / 4, mean=night / 5) for name in ('val', 'val_id')}
    budget = 0 if method == 'none' else 4
    setting = dict(method=method, budget=budget, seed=seed, layers=layers, dropped=1, seconds=2.0)
    if budget:
        figures['probe'] = dict(generated=0.9 + seed / 10, control=0.5)
    return {**setting, **figures, 'others': others, **own}


@pytest.fixture
def text(tmp_path) -> str:
    cells = [cell(method, seed) for method in ERRORS for seed in (0, 1)]
    for seed, seconds in enumerate((10, 20)):
        held_out = dict(target_loss=1.5, accuracy=0.25, crossed_target_loss=2.0)
        facts = dict(method='gap', prompts=['p'], held_out=held_out, seconds=seconds)
        write_json(tmp_path / 'pools' / f'gap-{seed}-0123' / 'about.json', facts)
        # Another method whose name begins alike, and images that nobody drew.
        write_json(tmp_path / 'pools' / f'gap-{seed}-9-4567' / 'about.json', dict(method='gap-0-9'))
        write_json(tmp_path / 'pools' / f'real-{seed}-0123' / 'about.json', dict(method='real'))
    meta = dict(command='c', test='test', compare=['gap', 'gone'])
    methods = dict(none='as it is', real='real ones', gap='found')
    write_report(tmp_path, cells, methods, meta, tmp_path, len(cells))
    assert json.loads((tmp_path / 'results.json').read_text()) == cells
    assert (tmp_path / 'curves.png').stat().st_size > 5000
    return (tmp_path / 'results.md').read_text()


def test_an_error_is_called_one(text):
    assert 'AbsRel in percent (lower is better) on test' in text and 'Incomplete' not in text
    assert '| gap | 4 | 1 |  | 19.5 ± 6.4 | -5.5 ± 6.4 | 14.6 ± 4.8 | 2.0 |' in text
    assert '| none | 0 | all | 12.50 ± 3.54 | 25.00 ± 7.07 |' in text
    # The least error is chosen.
    assert '| real | 4 images, all | 11.0 ± 1.4 | 4 images, all | 11.0 ± 1.4 |' in text


def test_errors_are_compared_by_their_logarithms(text):
    for group in ('mean', 'clear', 'night'):
        (table,) = [t for t in text.split('\n\n') if t.startswith(f'| whole network, {group} |')]
        for other, errors in list(ERRORS.items())[:2]:
            (row,) = [line for line in table.splitlines() if line.startswith(f'| {other} |')]
            pairs = zip(ERRORS['gap'], errors, strict=True)
            gains = [100 * math.log(own / theirs) for own, theirs in pairs]
            assert row == f'| {other} | {spread(gains, "+.1f", interval)} |'


def test_images_stand_beside_their_method(text):
    assert '| gap | found | 1.50 ± 0.00 | 0.25 ± 0.00 | 2.00 ± 0.00 | 0.95 (0.50) |  | 15 |' in text
    assert '| none | as it is |  |  |  |  |  |  |' in text
    assert '| real | real ones |  |  |  | 0.95 (0.50) |  |  |' in text


def test_other_measures_and_layers(tmp_path):
    cells = [cell('none', 0, layers, measure='f1') for layers in ('last', 'all')]
    meta = dict(command='c', test='test', compare=['none'])
    write_report(tmp_path, cells, dict(none=''), meta, tmp_path, 3)
    text = (tmp_path / 'results.md').read_text()
    assert 'F1 of classes in percent on test' in text and '**Incomplete: 2 of 3 cells.**' in text
    assert '## Fine-tuning the last layer' in text and '## Fine-tuning the whole network' in text


def test_a_further_split_takes_the_place_of_test():
    there = on_split(cell('gap', 0), 'val')
    assert there['worst_group'] == 0.15 / 4 and there['method'] == 'gap'


def test_intervals():
    assert math.isnan(interval([1.0]))
    assert interval([1.0, 2.0, 4.0]) == pytest.approx(3.7946, abs=1e-3)  # 4.3027 * 1.5275 / sqrt 3
    assert spread([0.5]) == '0.5' and spread([1, 2], '.2f') == '1.50 ± 0.71'


def test_the_images_are_those_of_this_run(tmp_path):
    """Not those of a larger pool that was drawn with other settings of the method."""
    for name, images, key in (('a', 100, 'before'), ('b', 8, 'now'), ('c', 4, 'now')):
        about = dict(method='gap', images=images, key=key)
        write_json(tmp_path / 'pools' / f'gap-0-{name}' / 'about.json', about)
    assert [one['images'] for one in _latest(tmp_path, 'gap', 0, 'now')] == [8]
    assert [one['images'] for one in _latest(tmp_path, 'gap', 0, None)] == [100]
    assert _latest(tmp_path, 'gap', 0, 'other') == []
