# SPDX-License-Identifier: Apache-2.0
"""What tests themselves rely on: a command in this process says and does what one outside does."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from tests.support import commands
from tests.support.commands import run_command

MEDDLING = """
import os, random, sys
import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

assert DefaultScope.get_current_instance() is None
assert not torch.serialization.get_safe_globals()
if __name__ == '__main__':
    MMLogger.get_instance('own').warning('logged')
    DefaultScope.get_instance('own', scope_name='mmseg')
    torch.set_num_threads(3)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    os.environ['MEDDLED'] = 'yes'
    print('with', sys.argv[1:], file=sys.stderr)
    if sys.argv[1:] == ['divide']:
        1 / 0
    if sys.argv[1:]:
        sys.exit(int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, 'ROOT', tmp_path)
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'meddling.py').write_text(MEDDLING)
    return tmp_path


def state() -> list:
    numbers = (random.random(), np.random.rand(), torch.rand(1).item())
    scope = DefaultScope.get_current_instance()
    switches = (torch.get_num_threads(), torch.backends.cudnn.benchmark)
    places = (dict(os.environ), list(sys.argv), list(sys.path), os.getcwd())
    return [scope, switches, places, torch.serialization.get_safe_globals(), numbers]


def test_ends_and_output(tools):
    done = run_command('meddling')
    assert done.code == 0 and done.check().endswith('with []\n') and 'logged' in done.output
    assert run_command('meddling', 0).code == 0 and run_command('meddling', 3).code == 3
    done = run_command('meddling', 'too bad')
    assert done.code == 1 and done.output.endswith("['too bad']\ntoo bad\n")
    done = run_command('meddling', 'divide')
    assert done.code == 1 and 'ZeroDivisionError: division by zero' in done.output


def test_nothing_of_it_stays(tools):
    with commands.process_state():
        DefaultScope.get_instance('before', scope_name='mmpretrain')
        states = []
        for run in (False, True):
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(1)
            if run:
                run_command('meddling', cwd=tools / 'tools').check()
            states.append(state())
        assert states[0] == states[1] and states[0][0].scope_name == 'mmpretrain'
        assert not MMLogger.check_instance_created('own')
