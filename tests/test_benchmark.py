# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool on the embedded world, with few steps and images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_sharding import torchrun

ROOT = Path(__file__).parents[1]
METHODS = 'none ap gap style real'.split()
NO_IMAGES = {'none', 'style'}
QUICK = [
    'custom_hooks.0.search.steps=2',
    'custom_hooks.0.search.prompts_per_class=2',
    'custom_hooks.0.search.images_per_prompt=1',
    'custom_hooks.0.search.holdout=2',
    'custom_hooks.0.synthesis.num_inference_steps=2',
    'custom_hooks.0.start=1',
    'train_dataloader.dataset.size=120',
    'test_dataloader.dataset.size=80',
    'benchmark.steps=4',
    'benchmark.methods.real.dataset.size=8',
    'benchmark.methods.gap.search.steps=2',
    'benchmark.methods.gap.synthesis.aim_images=1',
    'benchmark.evaluate.val.indices=[400,401,402,403]',
    'benchmark.evaluate.test_shift.size=8',
]


def run(
    out: Path, *options: str, config: str = 'gap_resnet18_toybirds'
) -> subprocess.CompletedProcess:
    config = f'configs/{config}.py'
    command = [sys.executable, 'tools/benchmark.py', config, '--out', str(out), *options]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='2'),
        timeout=400,
    )


def test_quick_benchmark(tmp_path):
    options = ['--methods', *METHODS, '--budgets', '4', '8', '--seeds', '0', '--layers', 'last']
    done = run(tmp_path, *options, '--cfg-options', *QUICK)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / 'results.json').read_text())
    assert len(cells) == len(NO_IMAGES) + 2 * (len(METHODS) - len(NO_IMAGES))
    for cell in cells:
        assert set(cell) >= {'method', 'budget', 'seed', 'layers', 'worst_group', 'mean'}
        assert cell['worst_group'] == min(cell['groups'].values())
        assert cell['val_worst_group'] == min(cell['others']['val']['groups'].values())
        assert set(cell['others']) == {'val', 'val_id', 'test_shift'}
    text = (tmp_path / 'results.md').read_text()
    assert all(f'| {method} |' in text for method in METHODS)
    assert '## Chosen on validation data' in text and '| test_shift |' in text
    check_pairs(text, cells)
    assert (tmp_path / 'curves.png').stat().st_size > 5000
    again = run(tmp_path, *options, '--cfg-options', *QUICK)
    assert again.returncode == 0
    assert json.loads((tmp_path / 'results.json').read_text()) == cells
    check_report(tmp_path, cells)


def check_report(out: Path, cells: list[dict]) -> None:
    """Finished cells are reported on another split, and stay as they are."""
    options = ['--methods', 'gap', 'none', '--budgets', '8', '--seeds', '0', '--layers', 'last']
    compare = "benchmark.compare=['gap','none']"
    done = run(out, *options, '--report', 'test_shift', '--cfg-options', *QUICK, compare)
    assert done.returncode == 0, done.stderr[-3000:]
    there = json.loads((out / 'test_shift' / 'results.json').read_text())
    cell = next(c for c in cells if c['method'] == 'gap' and c['budget'] == 8)
    assert there[0] == {**cell, **cell['others']['test_shift']}
    text = (out / 'test_shift' / 'results.md').read_text()
    assert 'in percent on test_shift' in text and '## none against the others' in text
    assert json.loads((out / 'results.json').read_text()) == cells


@pytest.mark.slow
def test_rounds_and_other_generators(tmp_path):
    """The second round searches against a model that has seen the first round's images."""
    methods = ['ap', 'ap-rounds', 'ap-shortcut']
    options = ['--methods', *methods, '--budgets', '4', '--seeds', '0', '--layers', 'last']
    quick = [*QUICK, 'benchmark.methods.ap-rounds.search.prompts_per_class=1']
    quick += ['custom_hooks.0.synthesis.batch_size=2']
    # The base model of a config whose training counts iterations.
    quick += ['train_cfg.by_epoch=False', 'train_dataloader.sampler.type=InfiniteSampler']
    done = run(tmp_path, *options, '--cfg-options', *quick, config='gap_resnet18_toybirds_variants')
    assert done.returncode == 0, done.stderr[-3000:]
    facts = {}
    for about in tmp_path.glob('pools/*/about.json'):
        facts[json.loads(about.read_text())['method']] = json.loads(about.read_text())
    assert facts['ap-rounds']['prompts'] == [
        f'r{number}-{name}-0' for number in (0, 1) for name in ('landbird', 'waterbird')
    ]
    (path,) = tmp_path.glob('rounds/ap-rounds-0-*/1.pth')
    base, trained = (
        torch.load(p, weights_only=False)['state_dict']
        for p in (tmp_path / 'base' / 'seed_0.pth', path)
    )
    assert any(not torch.equal(base[name], value) for name, value in trained.items())
    (pool,) = tmp_path.glob('pools/ap-rounds-*')
    rounds = [json.loads(line)['round'] for line in (pool / 'manifest.jsonl').open()]
    assert rounds == [0, 0, 1, 1]
    # Another gradient finds other prompts from the same starts.
    found = {}
    for method in ('ap', 'ap-shortcut'):
        (path,) = tmp_path.glob(f'prompts/{method}-0-*/r0-landbird-0.safetensors')
        found[method] = next(iter(load_file(path).values()))
    assert not torch.equal(found['ap'], found['ap-shortcut'])


def check_pairs(text: str, cells: list[dict]) -> None:
    """The table of `gap` against the others says what the cells say."""
    worst = {(c['method'], c['budget']): c['worst_group'] for c in cells}
    rows = text.split('## gap against the others')[1].split('##')[0].splitlines()
    rows = {row.split(' | ')[0][2:]: row for row in rows if row.startswith('| ')}
    assert '| last layer | 4 images | 8 images |' in rows['last layer']
    for other in set(METHODS) - {'gap'}:
        for budget, shown in zip((4, 8), rows[other].split('|')[2:4], strict=True):
            theirs = worst[other, 0 if other in NO_IMAGES else budget]
            assert shown.strip() == f'{100 * (worst["gap", budget] - theirs):+.1f} ± nan'


@pytest.mark.parametrize(
    'options, words',
    [
        (['--methods', 'none', 'magic'], "unknown methods ['magic']"),
        (['--seeds', '1', '1'], '--seeds names something twice'),
        (['--budgets', '7'], 'budget 7 is below the number of prompts (8)'),
        (['--cfg-options', 'test_evaluator.0.type=Accuracy'], 'the benchmark compares groups'),
    ],
)
def test_bad_arguments(options, words, tmp_path):
    done = run(tmp_path, *options)
    assert done.returncode != 0 and words in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_share_the_seeds(tmp_path):
    """The same cells from two processes as from one, seconds apart."""
    options = ['--methods', 'none', 'agnostic', '--budgets', '4', '--seeds', '0', '1', '2']
    options += ['--layers', 'last', '--cfg-options', *QUICK]
    config = 'configs/gap_resnet18_toybirds.py'
    cells = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ['tools/benchmark.py', config, '--out', str(out), '--launcher', 'pytorch']
        done = torchrun(*command, *options, processes=processes)
        assert done.returncode == 0, done.stdout[-3000:]
        cells.append(json.loads((out / 'results.json').read_text()))
        for cell in cells[-1]:
            del cell['seconds']
    assert len(cells[0]) == 6
    assert cells[0] == cells[1]
