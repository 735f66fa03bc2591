# SPDX-License-Identifier: Apache-2.0
"""The shipped configs run what their names say, and old names go on."""

from __future__ import annotations

import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmgap.benchmark import run
from mmgap.configs import finish_config, gap_hooks, is_old_name
from mmgap.loop import GAPSettings
from mmgap.loop.method import describe_method
from mmgap.loop.parts import settings_of
from mmgap.typed import change_settings

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
SAID = dict(ap='AP: ', gap='GAP: ', gp='GP: ', random='random prompts, no search')
OLD = [path for path in sorted(CONFIGS.glob('*.py')) if is_old_name(path)]
LEAVES = [path for path in sorted(CONFIGS.glob('*.py')) if path not in OLD]
NAMED = re.compile(r'configs/(?:ap|gap|gp|random|benchmark|_base_)[\w/-]+\.py')
BENCHMARKS = sorted((CONFIGS / 'benchmark').glob('*.py'))


def stem(path: Path) -> str:
    return path.stem


@cache
def read(path: Path) -> Config:
    return Config.fromfile(path)


def settings(path: Path) -> GAPSettings:
    (hook,) = gap_hooks(read(path))
    return settings_of(hook)


@pytest.mark.parametrize('path', LEAVES, ids=stem)
def test_a_name_says_what_it_runs(path):
    method = re.split('[-_]', path.stem)[0]
    assert describe_method(settings(path)).startswith(SAID[method])
    config = read(path)
    assert 'benchmark' not in config and not {'methods', 'zoo', 'hook'} & set(config)
    assert config.test_evaluator and config.train_cfg.by_epoch
    head = path.read_text().split('_base_ = ')[0]
    assert f'#   mmgap train {path.stem}\n' in head


@pytest.mark.parametrize('path', BENCHMARKS, ids=stem)
def test_benchmarks_inherit_from_trainings(path):
    text = path.read_text()
    assert f'benchmark/{path.stem}' in text.split('_base_ = ')[0]
    assert read(path).benchmark.methods.none and 'renamed' not in read(path)


@pytest.mark.parametrize('path', [*LEAVES, *CONFIGS.glob('_base_/**/*.py')], ids=stem)
def test_trainings_do_not_inherit_from_benchmarks(path):
    if 'methods' in path.parts:  # is for benchmarks alone
        return
    named = path.read_text().split(']\n')[0]
    assert 'methods/' not in named and 'benchmark/' not in named


@pytest.mark.parametrize(
    'leaf, benchmark, method',
    [
        ('gap_resnet18_toybirds', 'toybirds_resnet18', 'gap'),
        ('gap_efficientnet-lite0_toybirds', 'toybirds_efficientnet-lite0', 'gap'),
        ('gap_resnet18_toydepth', 'toydepth_resnet18', 'gap'),
        ('gap_resnet50_waterbirds', 'waterbirds_resnet50', 'gap'),
        ('gap_vit-base-p16_waterbirds', 'waterbirds_vit-base-p16', 'gap'),
        ('gap_resnet50_iwildcam', 'iwildcam_resnet50', 'gap'),
        ('ap_resnet18_toybirds', 'toybirds_resnet18', 'ap'),
        ('gp_resnet18_toybirds', 'toybirds_resnet18', 'gp'),
        ('ap-many_resnet18_toybirds', 'toybirds_resnet18', 'ap-many'),
        ('ap-many_efficientnet-lite0_toybirds', 'toybirds_efficientnet-lite0', 'ap-many'),
    ],
)
def test_a_training_does_what_the_method_of_its_benchmark_does(leaf, benchmark, method):
    hook, own = (
        settings(CONFIGS / 'benchmark' / f'{benchmark}.py'),
        settings(CONFIGS / f'{leaf}.py'),
    )
    fragment = read(CONFIGS / 'benchmark' / f'{benchmark}.py').benchmark.methods[method]
    assert own.search == change_settings(hook.search, fragment.get('search', {}), 'search')
    synthesis = change_settings(hook.synthesis, fragment.get('synthesis', {}), 'synthesis')
    assert own.synthesis == synthesis
    assert list(own.feedback) == list(fragment.get('feedback', hook.feedback))
    assert own.generator == hook.generator and own.start == hook.start


@pytest.mark.parametrize('path', OLD, ids=stem)
def test_an_old_name_goes_on_with_a_warning(path):
    config = Config.fromfile(path)
    new = re.findall(r'[\w/-]+', config.renamed)[0]
    assert (CONFIGS / f'{new}.py').is_file()
    with pytest.warns(FutureWarning, match=f'{path.name}: .* is called {re.escape(new)}'):
        finish_config(config)
    assert 'renamed' not in config and 'gap_hook' not in config
    assert settings(CONFIGS / f'{new}.py') == settings_of(config.custom_hooks[0])
    # Who compared methods with it goes on, too.
    listed = re.findall(r'benchmark/[\w-]+', config.get('renamed') or path.read_text())
    if listed:
        assert config.benchmark == read(CONFIGS / f'{listed[0]}.py').benchmark


def test_all_names_are_in_the_changelog():
    text = (ROOT / 'CHANGELOG.md').read_text()
    assert all(f'`{path.stem}`' in text for path in OLD)


def test_every_config_that_is_named_is_there():
    """In docs, messages and tools, but for folders of results, which tell what was typed then."""
    made, named = ROOT / 'docs' / 'results', 0
    listed = (path for top in ('docs', 'mmgap', 'tools') for path in (ROOT / top).rglob('*.*'))
    for path in [*ROOT.glob('*.md'), *listed]:
        written = path.suffix in ('.md', '.py', '.sh') and path.name != 'CHANGELOG.md'
        if not written or made in path.parent.parents:
            continue
        for name in NAMED.findall(path.read_text()):
            assert (ROOT / name).is_file(), (path, name)
            assert ROOT / name not in OLD, (path, name)
            named += 1
    assert named > 20


def test_benchmarks_of_the_docs_can_be_run(monkeypatch):
    """With the methods, injections and splits that the printed commands name."""
    text = (ROOT / 'README.md').read_text() + (ROOT / 'docs' / 'results' / 'README.md').read_text()
    commands = re.findall(r'^python (tools/benchmark\.py .*)', text, re.MULTILINE)
    checked = 0
    for command in map(shlex.split, commands):
        # One of another commit, and one of a target that must be pretrained.
        if 'docs/results/toybirds-ap' in command or '--model' in command:
            continue
        monkeypatch.setattr(sys, 'argv', command)
        args = run.parse_args()
        args.config = ROOT / args.config
        assert run.load_config(args).benchmark.steps
        checked += 1
    assert checked > 5


def test_the_index_lists_the_trainings():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = [
        m for file in index['Import'] for m in yaml.safe_load((ROOT / file).read_text())['Models']
    ]
    assert {model['Config'] for model in models} == {f'configs/{path.name}' for path in LEAVES}
    assert all(model['Name'] == Path(model['Config']).stem for model in models)
