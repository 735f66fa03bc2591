# SPDX-License-Identifier: Apache-2.0
"""The command ``mmgap``: its help, its table, and what it says where it can do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

import mmgap
from mmgap.cli.main import COMMANDS, help_text, main
from tests.support.commands import ROOT, run_command

PROBE = """
import json, runpy, sys
sys.argv[1:] = ['--help']
runpy.run_module('mmgap', run_name='__main__')
print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))
"""
PRESENT = list(COMMANDS)


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    """``main`` changes them in place."""
    monkeypatch.setattr(sys, 'argv', ['mmgap'])


def test_help_comes_at_once():
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, '-c', PROBE],
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
        said, loaded = done.stdout[: -len(done.stdout.splitlines()[-1]) - 1], done.stdout
        assert said == help_text()
        assert not {'torch', 'mmengine', 'numpy', 'argparse'} & set(json.loads(loaded[len(said) :]))
    # The smaller of both, since other processes only ever add to it.
    assert min(seconds) < 0.7


def test_help_has_a_line_for_each_command():
    said = run_command('mmgap', '--help').check()
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith('  ')}
    for name, (_, about) in COMMANDS.items():
        assert lines[name].endswith(f' {about}')
    assert max(map(len, said.splitlines())) <= 100
    assert run_command('mmgap', '--version').check() == f'mmgap {mmgap.__version__}\n'
    nothing = run_command('mmgap')
    assert nothing.code == 2 and nothing.output == said


@pytest.mark.parametrize('name', PRESENT)
def test_help_of_each_command(name, capsys):
    module = COMMANDS[name][0].split(':')[0]
    assert find_spec(module) is not None
    with pytest.raises(SystemExit) as ended:
        main([name, '--help'])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: mmgap {name} [-h]')


@pytest.mark.parametrize(
    'name, words',
    [
        ('trian', "no command 'trian'. Did you mean 'train'? There are configs, check, train,"),
        ('search_prompts', "Did you mean 'search'?"),
        ('--cfg-options', "no command '--cfg-options'. There are"),
    ],
)
def test_unknown_command(name, words):
    done = run_command('mmgap', name)
    assert done.code == 1 and words in done.output


def test_without_openmmlab(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmgap.cli.test', raising=False)
    monkeypatch.setitem(sys.modules, 'mmengine.runner', None)
    with pytest.raises(SystemExit, match=r'mmgap test needs mmengine.*mmgap\[openmmlab,lite\]'):
        main(['test', 'config.py', 'checkpoint.pth'])


# Each command, with the arguments that it must have beside a config.
@pytest.mark.parametrize(
    'command, arguments',
    [
        ('check', []),
        ('train', []),
        ('test', ['last.pth']),
        ('search', []),
        ('generate', ['--text', 'a', '--num', '1', '--out', 'pool']),
        ('benchmark', ['--out', 'out']),
        ('zoo', ['--out', 'out']),
        ('cost', ['--out', 'out']),
    ],
)
def test_all_say_the_same_of_an_unknown_config(command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (
        "config 'configs/gap_resnet18_toybird.py' does not exist, and mmgap ships none of this "
        'name; near it are gap_resnet18_toybirds, '
    )
    with pytest.raises(SystemExit) as ended:
        main([command, 'configs/gap_resnet18_toybird.py', *arguments])
    assert str(ended.value).startswith(words)
    assert not list(tmp_path.iterdir())
