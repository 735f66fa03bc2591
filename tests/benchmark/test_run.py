# SPDX-License-Identifier: Apache-2.0
"""The benchmark on the embedded world, with few steps and images, and how it goes on."""

from __future__ import annotations

import json
import time
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmgap.benchmark.cells import Benchmark
from mmgap.benchmark.report import write_report
from mmgap.benchmark.run import Cells, check_config, run_cells
from mmgap.files import read_json, write_json
from tests.support.benchmarks import BIRDS, QUICK, ROOT, run_benchmark

METHODS = 'none style real gap'.split()
NO_IMAGES = {'none', 'style'}
OPTIONS = ['--methods', *METHODS, '--budgets', 2, 4, '--seeds', 0, '--layers', 'last']


@pytest.fixture(scope='module')
def out(tmp_path_factory) -> Path:
    """The folder of a finished benchmark."""
    folder = tmp_path_factory.mktemp('benchmark')
    output = run_benchmark(folder, *OPTIONS, '--cfg-options', *BIRDS).check()
    assert '[6/6] gap 4 images, seed 0, last: worst group' in output
    return folder


@pytest.fixture
def cells(out) -> list[dict]:
    return json.loads((out / 'results.json').read_text())


def test_every_method_has_its_cells(out, cells):
    settings = [(cell['method'], cell['budget']) for cell in cells]
    assert settings == [('none', 0), ('style', 0), *product(('real', 'gap'), (2, 4))]
    for cell in cells:
        assert set(cell) >= {'method', 'budget', 'seed', 'layers', 'worst_group', 'mean'}
        assert cell['worst_group'] == min(cell['groups'].values())
        assert cell['val_worst_group'] == min(cell['others']['val']['groups'].values())
        assert set(cell['others']) == {'val', 'val_id', 'test_shift'}


def test_the_tables_have_every_method(out, cells):
    text = (out / 'results.md').read_text()
    assert all(f'| {method} |' in text for method in METHODS)
    assert '## Chosen on validation data' in text and '| test_shift |' in text
    assert (out / 'curves.png').stat().st_size > 5000
    worst = {(c['method'], c['budget']): c['worst_group'] for c in cells}
    rows = text.split('## gap against the others')[1].split('##')[0].splitlines()
    rows = {row.split(' | ')[0][2:]: row for row in rows if row.startswith('| ')}
    assert '| last layer | 2 images | 4 images | all budgets |' in rows['last layer']
    for other in set(METHODS) - {'gap'}:
        for budget, shown in zip((2, 4), rows[other].split('|')[2:4], strict=True):
            theirs = worst[other, 0 if other in NO_IMAGES else budget]
            assert shown.strip() == f'{100 * (worst["gap", budget] - theirs):+.1f}'


def test_a_pool_of_real_images_says_so(out):
    (pool,) = out.glob('pools/real-*')
    for number, line in enumerate((pool / 'manifest.jsonl').open()):
        sample = json.loads(line)
        assert sample.pop('file') == f'images/{number:06d}.png'
        assert sample.pop('bytes') > 100 and sample.pop('label') in (0, 1)
        assert sample.pop('group') == sample.pop('source_group') in range(4)
        assert sample == dict(
            source_index=number,
            seed=0,
            prompt_id='real',
            generator='real',
            num_inference_steps=0,
            target_loss_source=None,
            target_loss_image=None,
            feedback=None,
            round=0,
            agreement=None,
            critic=None,
            kept=True,
        )
    assert number == 3


def test_finished_cells_are_reported_on_another_split(out, cells):
    options = ['--methods', 'gap', 'none', '--budgets', 4, '--seeds', 0, '--layers', 'last']
    compare = "benchmark.compare=['gap','none']"
    more = ['--report', 'test_shift', '--cfg-options', *BIRDS, compare]
    output = run_benchmark(out, *options, *more).check()
    assert '2 of 2 cells are finished' in output and '[2/2]' not in output
    there = json.loads((out / 'test_shift' / 'results.json').read_text())
    assert there[0] == {**cells[-1], **cells[-1]['others']['test_shift']}
    text = (out / 'test_shift' / 'results.md').read_text()
    assert 'in percent on test_shift' in text and '## none against the others' in text
    assert json.loads((out / 'results.json').read_text()) == cells


def test_cells_of_other_settings_are_refused(out, cells):
    changed = [*OPTIONS, '--cfg-options', *BIRDS, 'benchmark.methods.gap.search.steps=9']
    ended = run_benchmark(out, *changed)
    assert ended.code == 1 and "was made with other settings of 'gap'; choose" in ended.output
    changed = [*OPTIONS, '--cfg-options', *BIRDS, 'benchmark.steps=9']
    ended = run_benchmark(out, *changed)
    assert ended.code == 1 and "was made with other settings of 'none'; choose" in ended.output
    changed = [*OPTIONS, '--cfg-options', *BIRDS, 'train_dataloader.batch_size=9']
    ended = run_benchmark(out, *changed)
    assert ended.code == 1 and f'{out} holds results of another config' in ended.output
    assert json.loads((out / 'results.json').read_text()) == cells


def test_ways_for_images_to_enter_training(out):
    """On the same pools; a refit's step is one of the cell's two."""
    options = ['--methods', 'none', 'gap', '--budgets', 4, '--seeds', 0, '--layers', 'last']
    options += ['--injections', 'refit', 'auto']
    quick = [*BIRDS, 'custom_hooks.0.injection.steps=1']
    pools = {path: path.stat().st_mtime_ns for path in out.glob('pools/*/about.json')}
    output = run_benchmark(out, *options, '--cfg-options', *quick).check()
    assert '[3/3] gap 4 images, seed 0, last, auto: worst group' in output
    text = (out / 'results.md').read_text()
    assert all(f'## Fine-tuning the last layer, {name}' in text for name in ('refit', 'auto'))
    assert text.count('| none | 0 | 0 |') == 2, 'it stands beside each'
    assert 'Incomplete' not in text
    none, refit, auto = json.loads((out / 'results.json').read_text())
    assert 'probe' not in none and refit['probe']['mode'] == 'refit'
    assert auto['probe']['mode'] in ('mix', 'refit')
    assert 0.5 <= auto['probe']['generated'] <= 1
    assert pools == {path: path.stat().st_mtime_ns for path in out.glob('pools/*/about.json')}
    ended = run_benchmark(out, '--injections', 'add', '--cfg-options', *quick)
    assert (
        ended.code == 1 and "unknown --injections ['add']; the config has ['mix'," in ended.output
    )


def test_the_cost_of_another_method(out):
    """As more images, or as more to choose from; counted, not computed."""
    options = ['--methods', 'gap', 'more', 'choice', 'drawn', '--budgets', 2, 4, '--seeds', 0]
    methods = [
        'benchmark.methods.more.texts=[forest]',
        'benchmark.methods.more.cost_of=gap',
        'benchmark.methods.choice.texts=[forest]',
        'benchmark.methods.choice.cost_of=gap',
        'benchmark.methods.choice.synthesis.keep.by=entropy',
        'benchmark.methods.drawn.initial.prompts_per_class=1',
        'benchmark.methods.drawn.cost_of=gap',
    ]
    run_benchmark(out, *options, '--layers', 'last', '--cfg-options', *BIRDS, *methods).check()
    cells = json.loads((out / 'results.json').read_text())
    cells = {(cell['method'], cell['budget']): cell for cell in cells}
    for budget in (2, 4):
        gap, more, choice = (cells[name, budget] for name in ('gap', 'more', 'choice'))
        one = more['evaluations'] / more['images']
        assert gap['images'] == choice['images'] == budget < more['images']
        for cell in (more, choice):  # as much as there is room for in whole images
            assert gap['evaluations'] - budget * one < cell['evaluations'] <= gap['evaluations']
        drawn = cells['drawn', budget]
        assert (drawn['images'], drawn['evaluations']) == (more['images'], more['evaluations'])
        assert choice['dropped'] + budget == pytest.approx(more['images'], abs=budget)
    text = (out / 'results.md').read_text()
    assert f'| more | 4 ({more["images"]}) | 0 | {more["evaluations"] / 4:.0f} |' in text
    for file in out.glob('pools/choice-*/manifest.jsonl'):
        lines = [json.loads(line) for line in file.open()]
        assert {line['useful_by'].split('@')[0] for line in lines} == {'entropy'}


def test_a_method_may_have_more_prompts_and_none_is_evaluated(tmp_path):
    options = ['--methods', 'random', '--seeds', 0, '--layers', 'last', '--budgets']
    many = [*BIRDS, 'benchmark.methods.random.initial.prompts_per_class=3']
    many += ['benchmark.evaluate_prompts=False']
    ended = run_benchmark(tmp_path, *options, 4, '--cfg-options', *many)
    assert ended.code == 1
    assert "'random' has 6 prompts for 4 images; lower its prompts_per_class" in ended.output
    run_benchmark(tmp_path, *options, 6, '--cfg-options', *many).check()
    (file,) = tmp_path.glob('pools/random-*/about.json')
    about = json.loads(file.read_text())
    assert len(about['prompts']) == 6 and 'judged' not in about
    drawn = [json.loads(line)['prompt_id'] for line in (file.parent / 'manifest.jsonl').open()]
    drawn = {id.split('@')[0] for id in drawn}  # each around a source of either class
    assert drawn < set(about['prompts']) and len(drawn) == 3
    row = next(r for r in (tmp_path / 'results.md').read_text().splitlines() if 'the starting' in r)
    assert row.split(' | ')[2:5] == ['', '', '']


@pytest.mark.slow  # 30 s: four methods that make images, and a training between two rounds
def test_rounds_and_other_generators(tmp_path):
    """The second round searches against a model that has seen the first round's images."""
    methods = ['ap', 'ap-own', 'ap-rounds', 'ap-shortcut']
    options = ['--methods', *methods, '--budgets', 4, '--seeds', 0, '--layers', 'last']
    quick = [*QUICK, 'benchmark.methods.ap-rounds.search.prompts_per_class=1']
    quick += ['custom_hooks.0.search.prompts_per_class=2', 'custom_hooks.0.search.steps=2']
    # The base model of a config whose training counts iterations.
    quick += ['train_cfg.by_epoch=False', 'train_dataloader.sampler.type=InfiniteSampler']
    config = ROOT / 'configs' / 'benchmark' / 'toybirds_variants.py'
    run_benchmark(tmp_path, *options, '--cfg-options', *quick, config=config).check()
    facts = {}
    for path in tmp_path.glob('pools/*/about.json'):
        facts[json.loads(path.read_text())['method']] = json.loads(path.read_text())
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
    # Another gradient finds other prompts from the same starts; `ap-own` takes those of `ap`.
    assert not list(tmp_path.glob('prompts/ap-own-*'))
    assert facts['ap-own']['judged'] == facts['ap']['judged']
    prompts = {}
    for method in ('ap', 'ap-shortcut'):
        (path,) = tmp_path.glob(f'prompts/{method}-0-*/r0-landbird-0.safetensors')
        prompts[method] = next(iter(load_file(path).values()))
    assert not torch.equal(prompts['ap'], prompts['ap-shortcut'])


@pytest.mark.parametrize(
    'options, words',
    [
        (['--methods', 'none', 'magic'], "unknown methods ['magic']"),
        (['--seeds', '1', '1'], '--seeds names something twice'),
        (['--budgets', '7'], 'budget 7 is below the number of prompts (8)'),
        (['--report', 'moon'], "--report 'moon' is not evaluated; the config has ['val', "),
        (['--jobs', '0'], '--jobs must be 1 or more, not 0'),
        (['--jobs', '2', '--launcher', 'slurm'], 'leave out --launcher slurm'),
        (['--launcher', 'slurm'], "--launcher slurm needs ['SLURM_PROCID', "),
    ],
)
def test_bad_arguments(options, words, tmp_path):
    ended = run_benchmark(tmp_path, *options)
    assert ended.code and words in ended.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'change, words',
    [
        ({'test_evaluator.0.type': 'Accuracy'}, "the test_evaluator .* needs one of mmgap's"),
        ({'benchmark.methods.gap.round': 2}, r"method 'gap' has unknown keys \['round'\]"),
        ({'benchmark.methods.gap.feedback.1.images': 'a/b'}, "'gap' takes images from a/b, which"),
        ({'custom_hooks': []}, 'toy.py must have one mmgap.GAPHook, it has 0'),
    ],
)
def test_what_cannot_be_compared_is_named(change, words, birds):
    birds.merge_from_dict(change)
    with pytest.raises(SystemExit, match=words):
        check_config('toy.py', birds, None, [100])


@pytest.mark.parametrize(
    'change, words',
    [
        (
            {'benchmark.train': {'train_dataloader': {'sampler': dict(type='GroupBalanced')}}},
            r"benchmark.train must not change \['train_dataloader.sampler', ",
        ),
        (
            {'train_dataloader.sampler': dict(type='RepeatAugSampler')},
            'train_dataloader.sampler is a RepeatAugSampler; cells draw all images alike',
        ),
    ],
)
def test_samplers_that_cells_would_not_have(change, words, birds, tmp_path):
    birds.merge_from_dict(change)
    with pytest.raises(ValueError, match=words):
        Benchmark(birds, tmp_path, [8])
    assert not list(tmp_path.iterdir())


def test_rounds_need_one_budget(birds, tmp_path, capsys):
    """Also for a method that gets the cost of one with rounds, but not for one with its prompts."""
    birds.merge_from_dict({'benchmark.methods.ap.rounds': 2})
    birds.benchmark.methods.paid = dict(texts=['forest'], cost_of='ap')
    birds.benchmark.methods.own = dict(prompts_of='ap', synthesis=dict(cross=False))
    keys = [Benchmark(birds, tmp_path, [budget]).key('ap') for budget in (8, 16)]
    assert keys[0] != keys[1]
    for name in ('ap', 'paid'):
        assert check_config('toy.py', birds, ['none', name], [8]) == ['none', name]
        with pytest.raises(SystemExit, match=f"methods .'{name}'. have rounds, each with a part"):
            check_config('toy.py', birds, ['none', name], [16, 8])
    assert check_config('toy.py', birds, ['own'], [16, 8]) == ['own']
    assert Benchmark(birds, tmp_path, [16, 8]).key('own')
    birds.benchmark.methods = {
        name: birds.benchmark.methods[name] for name in ('none', 'ap', 'paid', 'own')
    }
    assert check_config('toy.py', birds, None, [16, 8]) == ['none', 'own']
    assert "without ['ap', 'paid'], which have rounds" in capsys.readouterr().out


def test_seconds_are_those_of_all_that_was_done(birds, tmp_path, monkeypatch):
    """Those of a pool with what it had before it grew; a cell's without its base checkpoint."""
    clock = iter(range(1000))
    monkeypatch.setattr('mmgap.benchmark.cells.time.monotonic', lambda: next(clock))
    monkeypatch.setattr(Benchmark, '_fill', lambda self, *_: {})
    monkeypatch.setattr(Benchmark, '_covered', lambda self, _: {})
    for budget, seconds in ((8, 1), (16, 2), (8, 2), (32, 3)):
        folder = Benchmark(birds, tmp_path, [budget]).pool('ap', 0)
        assert read_json(folder / 'about.json')['seconds'] == seconds
    benchmark, passed = Benchmark(birds, tmp_path, [8]), []
    monkeypatch.setattr(benchmark, 'base', lambda _: passed or passed.append(next(clock)))
    monkeypatch.setattr(benchmark, 'training', lambda *_: benchmark.base(0))
    report = dict(metrics={}, worst_group=0.5)
    monkeypatch.setattr('mmgap.benchmark.cells.train_and_test', lambda *_, **__: (report, {}))
    cell = benchmark.cell('none', 0, 0, 'last')
    assert len(passed) == 1 and cell['seconds'] == 1


def test_cells_depend_on_how_they_are_measured(birds, tmp_path):
    before = Benchmark(birds, tmp_path, [8])
    birds.test_evaluator[0].prefix = 'other'
    after = Benchmark(birds, tmp_path, [8])
    assert after.cell_key('none') != before.cell_key('none') and after.key('ap') == before.key('ap')


def test_configs_that_are_no_benchmarks(tmp_path):
    ended = run_benchmark(tmp_path, config=tmp_path / 'no.py')
    assert ended.code and "no.py' does not exist" in ended.output
    ended = run_benchmark(tmp_path, config=ROOT / 'configs' / 'gap_resnet50_waterbirds.py')
    assert ended.code and 'has no `benchmark` section with `methods`' in ended.output
    assert 'benchmark/' in ended.output


class DrawnCells:
    """Cells of two seeds that are written at once; ``worst`` is each one's worst group."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.worst = out, [], {}
        settings = [('none', 0), ('gap', 4), ('gap', 8)]
        for number, (seed, (method, budget)) in enumerate(product((0, 1), settings)):
            self.worst[method, budget, seed] = number**2 / 100

    def of(self, seeds: list[int]) -> Cells:
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
    cells, line = DrawnCells(tmp_path), str
    every, own = cells.of([0, 1]), cells.of([0])
    fails = list(own)[2]

    def failing() -> dict:
        cells.cell('none', 0, 1)  # by another process, in the meantime
        cells.cell('gap', 4, 1)
        raise RuntimeError('cut')

    with pytest.raises(RuntimeError, match='cut'):
        run_cells(every, {**own, fails: failing}, line, cells.report)
    assert cells.reported() == [('none', 0, 0), ('gap', 4, 0)]
    text = (tmp_path / 'results.md').read_text()
    assert '**Incomplete: 2 of 6 cells.**' in text
    assert '| gap | 4 | 0 |  | 1.0 | +1.0 | 50.0 | 1.0 |' in text and '| none | +1.0 |' in text
    figure = (tmp_path / 'curves.png').stat().st_mtime_ns

    def sleep(seconds: float) -> None:
        cells.cell('gap', 8, 1)  # what the other process was at
        text = (tmp_path / 'results.md').read_text()
        assert '**Incomplete: 5 of 6 cells.**' in text
        # Both seeds have the first pair; one has the second.
        assert f'| none | +4.0 ± {3 * 12.7062:.1f} | +4.0 |' in text
        assert (tmp_path / 'curves.png').stat().st_mtime_ns == figure, 'drawn a moment ago'

    monkeypatch.setattr(time, 'sleep', sleep)
    run_cells(every, own, line, cells.report)
    assert cells.reported() == list(cells.worst) and len(cells.ran) == 6
    assert 'Incomplete' not in (tmp_path / 'results.md').read_text()
    assert (tmp_path / 'curves.png').stat().st_mtime_ns > figure
