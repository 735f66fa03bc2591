# SPDX-License-Identifier: Apache-2.0
"""Command lines that cannot be meant so, and folders that hold something else."""

from __future__ import annotations

from tests.soak.stage import Stage, case
from tests.support.benchmarks import BIRDS, CONFIG
from tests.support.reports import fake_run


@case('a command that there is not', 'mmgap')
def command_unknown(stage: Stage) -> None:
    stage.refuses('trian', 'config.py', says=["'trian'", "'train'"])


@case('an option that there is not', 'train')
def option_unknown(stage: Stage) -> None:
    stage.refuses('train', stage.config(), '--workdir', 'x', says=['--workdir'])


@case('--cfg-options without a value', 'train')
def option_no_value(stage: Stage) -> None:
    stage.refuses('train', stage.config(), '--cfg-options', 'model', says=['model', '='])


@case('--cfg-options into a list that is shorter', 'train')
def option_index(stage: Stage) -> None:
    options = ('--cfg-options', 'custom_hooks.3.budget=5')
    stage.refuses('train', stage.config(), *options, says=['custom_hooks', '3'])


@case('--num 0', 'generate')
def num_zero(stage: Stage) -> None:
    pool = stage.folder / 'pool'
    options = ('--text', 'a', '--num', 0, '--out', pool)
    stage.refuses('generate', stage.config(), *options, says=['--num', '0'])
    assert not pool.exists()


@case('--num many', 'generate')
def num_words(stage: Stage) -> None:
    options = ('--text', 'a', '--num', 'many', '--out', stage.folder / 'pool')
    stage.refuses('generate', stage.config(), *options, says=['--num', "'many'"])


@case('neither prompts nor text', 'generate')
def no_prompts(stage: Stage) -> None:
    options = ('--num', 1, '--out', stage.folder / 'pool')
    stage.refuses('generate', stage.config(), *options, says=['--prompts', '--text'])


@case('prompts that do not exist', 'generate')
def prompts_missing(stage: Stage) -> None:
    path = stage.folder / 'prompts'
    options = ('--prompts', path, '--num', 1, '--out', stage.folder / 'pool')
    stage.refuses('generate', stage.config(), *options, says=['--prompts', path])


@case('a folder without a run', 'report')
def report_nothing(stage: Stage) -> None:
    stage.refuses('report', stage.folder, says=[stage.folder, 'gap'])


@case('a folder that does not exist', 'report')
def report_missing(stage: Stage) -> None:
    stage.refuses('report', stage.folder / 'run', says=[stage.folder / 'run'])


@case('a run whose summary.json is cut off', 'report')
def report_cut(stage: Stage) -> None:
    path = fake_run(stage.folder / 'run') / 'gap' / 'summary.json'
    path.write_text(path.read_text()[:300])
    stage.refuses('report', stage.folder / 'run', says=[path, 'JSON'])


@case('a run whose summary.json is a list', 'report')
def report_list(stage: Stage) -> None:
    path = fake_run(stage.folder / 'run') / 'gap' / 'summary.json'
    path.write_text('[1, 2]')
    stage.refuses('report', stage.folder / 'run', says=[path])


@case('a run whose pictures are gone', 'report')
def report_pictures(stage: Stage) -> None:
    work = fake_run(stage.folder / 'run')
    for path in work.rglob('*.png'):
        path.unlink()
    stage.accepts('report', work)
    assert '<html' in (work / 'gap' / 'report.html').read_text()


@case('an --out for the page that is a folder', 'report')
def report_out(stage: Stage) -> None:
    work, out = fake_run(stage.folder / 'run'), stage.folder / 'page'
    out.mkdir()
    (out / 'note.txt').write_text('mine')
    stage.refuses('report', work, '--out', out, says=[out])


@case('a folder without images', 'masks')
def masks_no_images(stage: Stage) -> None:
    for name in ('images', 'segmentations'):
        (stage.folder / name).mkdir()
    options = ('--segmentations', stage.folder / 'segmentations')
    stage.refuses('masks', stage.folder / 'images', *options, says=[stage.folder / 'images'])


@case('segmentations of other images', 'masks')
def masks_others(stage: Stage) -> None:
    root = stage.birds()
    for path in root.rglob('*_mask.png'):
        path.unlink()
    other = stage.folder / 'segmentations'
    other.mkdir()
    stage.refuses('masks', root, '--segmentations', other, says=[other, '--segmentations'])


@case('a segmenter that there is not', 'masks')
def masks_segmenter(stage: Stage) -> None:
    root = stage.birds()
    for path in root.rglob('*_mask.png'):
        path.unlink()
    options = ('--segmenter', 'type=mmgap.SamSegmentor', 'model=x')
    stage.refuses('masks', root, *options, says=['SamSegmentor', 'SamSegmenter'])


@case('boxes that are not JSON', 'masks')
def masks_boxes(stage: Stage) -> None:
    root, boxes = stage.birds(), stage.folder / 'boxes.json'
    for path in root.rglob('*_mask.png'):
        path.unlink()
    boxes.write_text('{"images": [')
    options = ('--segmenter', 'type=mmgap.SamSegmenter', 'model=x', '--boxes', boxes)
    stage.refuses('masks', root, *options, says=[boxes])


@case('a method that there is not', 'benchmark')
def benchmark_method(stage: Stage) -> None:
    out = stage.folder / 'out'
    stage.refuses('benchmark', CONFIG, '--methods', 'gab', '--out', out, says=["'gab'", 'gap'])
    assert not out.exists()


@case('a config without a benchmark section', 'benchmark')
def benchmark_section(stage: Stage) -> None:
    says = ['config.py', '`benchmark`', 'methods']
    stage.refuses('benchmark', stage.config(), '--out', stage.folder / 'out', says=says)


@case('a budget of 0', 'benchmark')
def benchmark_budget(stage: Stage) -> None:
    out = stage.folder / 'out'
    options = ('--methods', 'none', 'gap', '--budgets', 0, '--seeds', 0, '--out', out)
    stage.refuses('benchmark', CONFIG, *options, says=['budget 0', '(8)'])


@case('the same seed twice', 'benchmark')
def benchmark_seeds(stage: Stage) -> None:
    options = ('--seeds', 1, 1, '--out', stage.folder / 'out')
    stage.refuses('benchmark', CONFIG, *options, says=['--seeds', '[1, 1]'])


@case('a folder of another config', 'benchmark')
def benchmark_other(stage: Stage) -> None:
    out = stage.folder / 'out'
    options = ('--methods', 'none', '--budgets', 2, '--seeds', 0, '--layers', 'last')
    stage.accepts('benchmark', CONFIG, *options, '--out', out, '--cfg-options', *BIRDS)
    changes = [*BIRDS, 'benchmark.steps=3']
    says = [out, 'another']
    done = stage.run('benchmark', CONFIG, *options, '--out', out, '--cfg-options', *changes)
    stage.check_refused(done, says)


@case('a cell of a benchmark that is cut off', 'benchmark')
def benchmark_cell(stage: Stage) -> None:
    out = stage.folder / 'out'
    options = ('--methods', 'none', '--budgets', 2, '--seeds', 0, '--layers', 'last')
    command = (CONFIG, *options, '--out', out, '--cfg-options', *BIRDS)
    stage.accepts('benchmark', *command)
    (cell,) = (out / 'cells').glob('none-*.json')
    cell.write_text(cell.read_text()[:40])
    stage.refuses('benchmark', *command, says=[cell, 'JSON', 'delete'])


@case('an --out that is a file', 'benchmark')
def benchmark_out(stage: Stage) -> None:
    out = stage.folder / 'out'
    out.write_text('out')
    options = ('--methods', 'none', '--budgets', 8, '--seeds', 0, '--layers', 'last')
    stage.refuses('benchmark', CONFIG, *options, '--out', out, says=[out])


@case('a model that there is not', 'zoo')
def zoo_model(stage: Stage) -> None:
    options = ('--models', 'resnet-81', '--out', stage.folder / 'out')
    stage.refuses('zoo', CONFIG, *options, says=['resnet-81'])


@case('a case that there is not', 'cost')
def cost_case(stage: Stage) -> None:
    options = ('--cases', 'everything', '--out', stage.folder / 'out')
    stage.refuses('cost', stage.config(), *options, says=['everything'])


@case('a config that has no test data', 'test')
def test_no_data(stage: Stage) -> None:
    path = stage.config(text='test_dataloader = test_evaluator = test_cfg = None\n')
    stage.refuses('test', path, stage.shared.checkpoint, says=['test_dataloader'])


@case('a shipped config whose copy would overwrite another file', 'configs')
def configs_copy(stage: Stage) -> None:
    out = stage.folder / 'configs'
    out.mkdir()
    (out / 'gap_resnet18_toybirds.py').write_text('# mine\n')
    stage.refuses('configs', 'gap_resnet18_toybirds', '--out', out, says=[out, '--out'])
    assert [path.name for path in out.iterdir()] == ['gap_resnet18_toybirds.py']


@case('a config name that there is not', 'configs')
def configs_unknown(stage: Stage) -> None:
    stage.refuses('configs', 'resnet', '--out', stage.folder / 'x', says=["'resnet'", 'configs'])
