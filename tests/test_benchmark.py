# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool on the embedded world, with few steps and images."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmgap.benchmark import run as benchmark
from mmgap.benchmark.report import write_report
from mmgap.files import write_json
from tests.support.benchmark_job import work
from tests.support.processes import torchrun
from tests.support.quick_benchmark import QUICK, run

ROOT = Path(__file__).parents[1]

METHODS = 'none ap gap style real'.split()
NO_IMAGES = {'none', 'style'}


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
            assert shown.strip() == f'{100 * (worst["gap", budget] - theirs):+.1f}'


@pytest.mark.parametrize(
    'options, words',
    [
        (['--methods', 'none', 'magic'], "unknown methods ['magic']"),
        (['--seeds', '1', '1'], '--seeds names something twice'),
        (['--budgets', '7'], 'budget 7 is below the number of prompts (8)'),
        (['--cfg-options', 'test_evaluator.0.type=Accuracy'], 'the benchmark compares groups'),
        (['--jobs', '0'], '--jobs must be 1 or more, not 0'),
        (['--jobs', '2', '--launcher', 'slurm'], 'leave out --launcher slurm'),
    ],
)
def test_bad_arguments(options, words, tmp_path, monkeypatch, capsys):
    config = str(ROOT / 'configs' / 'gap_resnet18_toybirds.py')
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', config, '--out', str(tmp_path), *options])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert words in f'{ended.value} {capsys.readouterr().err}'
    assert not list(tmp_path.iterdir())


class Cells:
    """Cells of two seeds that are written at once; ``worst`` is each one's worst group."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.worst = out, [], {}
        settings = [('none', 0), ('gap', 4), ('gap', 8)]
        for number, (seed, (method, budget)) in enumerate(product((0, 1), settings)):
            self.worst[method, budget, seed] = number**2 / 100

    def of(self, seeds: list[int]) -> benchmark.Cells:
        own = [key for key in self.worst if key[2] in seeds]
        return {self.out / 'cells' / f'{key}.json': partial(self.cell, *key) for key in own}

    def cell(self, method: str, budget: int, seed: int) -> dict:
        path = self.out / 'cells' / f'{(method, budget, seed)}.json'
        if not path.exists():
            self.ran.append((method, budget, seed))
            worst = self.worst[method, budget, seed]
            cell = dict(method=method, budget=budget, seed=seed, layers='last', worst_group=worst)
            others = {name: dict(worst_group=worst, mean=0.5) for name in ('val', 'val_id')}
            cell.update(mean=0.5, dropped=0, seconds=1.0, groups=dict(a=worst), others=others)
            write_json(path, cell)
        return json.loads(path.read_text())

    def report(self, finished: list[dict]) -> None:
        meta = dict(command='x', test='test', compare=['gap'])
        write_report(self.out, finished, dict(none='', gap=''), meta, self.out, len(self.worst))

    def reported(self) -> list[tuple[str, int, int]]:
        cells = json.loads((self.out / 'results.json').read_text())
        return [(cell['method'], cell['budget'], cell['seed']) for cell in cells]


def test_tables_have_what_is_finished_by_whichever_process(tmp_path, monkeypatch):
    cells, line = Cells(tmp_path), str
    every, own = cells.of([0, 1]), cells.of([0])
    fails = list(own)[2]

    def failing() -> dict:
        cells.cell('none', 0, 1)  # by another process, in the meantime
        cells.cell('gap', 4, 1)
        raise RuntimeError('cut')

    with pytest.raises(RuntimeError, match='cut'):
        benchmark.run(every, {**own, fails: failing}, line, cells.report)
    assert cells.reported() == [('none', 0, 0), ('gap', 4, 0)]
    text = (tmp_path / 'results.md').read_text()
    assert '**Incomplete: 2 of 6 cells.**' in text
    assert '| gap | 4 | 0 | 1.0 | +1.0 | 50.0 | 1.0 |' in text and '| none | +1.0 |' in text
    figure = (tmp_path / 'curves.png').stat().st_mtime_ns

    def sleep(seconds: float) -> None:
        cells.cell('gap', 8, 1)  # what the other process was at
        text = (tmp_path / 'results.md').read_text()
        assert '**Incomplete: 5 of 6 cells.**' in text
        # Both seeds have the first pair; one has the second.
        assert f'| none | +4.0 ± {3 * 12.7062:.1f} | +4.0 |' in text
        assert (tmp_path / 'curves.png').stat().st_mtime_ns == figure, 'drawn a moment ago'

    monkeypatch.setattr(time, 'sleep', sleep)
    benchmark.run(every, own, line, cells.report)
    assert cells.reported() == list(cells.worst) and len(cells.ran) == 6
    assert 'Incomplete' not in (tmp_path / 'results.md').read_text()
    assert (tmp_path / 'curves.png').stat().st_mtime_ns > figure


def test_a_failing_job_stops_the_others(tmp_path, monkeypatch, capsys):
    for name in ('OMP_NUM_THREADS', 'PYTHONWARNINGS'):
        monkeypatch.setenv(name, '')  # put back afterwards
    args = argparse.Namespace(jobs=3, seeds=[0, 1], launcher='none', out=tmp_path)
    began = time.time()
    with pytest.raises(SystemExit, match='the second job has failed'):
        benchmark.start(work, args)
    assert time.time() - began < 200 and not multiprocessing.active_children()
    assert '--jobs 3 is more than there are seeds; 2 will do' in capsys.readouterr().out
    share = max(1, torch.get_num_threads() // 2)
    assert (tmp_path / '0').read_text() == (tmp_path / '1').read_text() == f'2 {share} {share}'


@pytest.mark.slow
def test_processes_share_the_seeds(tmp_path):
    """The same cells from two processes as from one, seconds apart."""
    options = ['--methods', 'none', 'agnostic', '--budgets', '4', '--seeds', '0', '1', '2']
    options += ['--layers', 'last', '--cfg-options', *QUICK]
    config = 'configs/gap_resnet18_toybirds.py'
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ['tools/benchmark.py', config, '--out', str(out), '--launcher', 'pytorch']
        done = torchrun(*command, *options, processes=processes)
        assert done.returncode == 0, done.stdout[-3000:]
    out = tmp_path / 'jobs'
    done = run(out, '--jobs', '2', *options)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [
        json.loads((tmp_path / name / 'results.json').read_text()) for name in ('1', '2', 'jobs')
    ]
    for cell in sum(cells, []):
        del cell['seconds']
    assert len(cells[0]) == 6
    assert cells[0] == cells[1] == cells[2]
    # A checkpoint that cannot be read ends the second job, and all; what is finished stays.
    (out / 'base' / 'seed_1.pth').write_bytes(b'no checkpoint')
    (out / 'cells' / 'none-0-1-last.json').unlink()
    done = run(out, '--jobs', '2', *options)
    assert done.returncode != 0 and 'UnpicklingError: Weights only load failed' in done.stderr
    assert len(json.loads((out / 'results.json').read_text())) == 5
