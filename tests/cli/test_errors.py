# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from mmgap.cli import errors
from mmgap.files import read_json
from mmgap.registry import TASK_UTILS
from mmgap.search import SearchSettings
from mmgap.weights import load_pretrained
from tests.support.commands import run_command


def raised(act) -> Exception:
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def of_own_class():
    raise ValueError('no image of mine is blue')


def wrapped_by_mmengine():
    try:
        raise TypeError('rate must be a number')
    except TypeError as error:
        raise TypeError(f'{error} in <hook at 0x7f>') from None


def in_a_worker(act) -> None:
    from torch._utils import ExceptionWrapper

    try:
        act()
    except Exception:
        ExceptionWrapper(where='in DataLoader worker process 0').reraise()


TOLD = dict(
    ours=lambda: SearchSettings(steps=-1),
    file=lambda: read_json('/no/such/file'),
    type=lambda: MODELS.build(dict(type='ResNett')),
    key=lambda: TASK_UTILS.build(dict(type='mmgap.AdversarialLos')),
    image=lambda: Image.open('/no/such/file'),
    folder=lambda: os.makedirs('/dev/null/work'),
)
KEPT = dict(
    own=of_own_class,
    key=lambda: {}['no such key'],
    arithmetic=lambda: 1 / 0,
    # These have a raise too.
    attribute=lambda: torch.nn.Linear(1, 1).wieght,
    config=lambda: Config(dict(a=1)).b,
    environment=lambda: os.environ['NO_SUCH_NAME'],
)


@pytest.mark.parametrize('name', TOLD)
def test_messages_that_somebody_wrote_are_told(name):
    assert errors.is_told(raised(TOLD[name]))
    assert errors.is_told(raised(lambda: in_a_worker(TOLD[name])))


@pytest.mark.parametrize('name', KEPT)
def test_others_keep_their_traceback(name):
    """Also what a user's own class says: who wrote it looks for the line."""
    assert not errors.is_told(raised(KEPT[name]))
    assert not errors.is_told(raised(lambda: in_a_worker(KEPT[name])))


def test_what_wraps_an_error_is_taken_off():
    assert str(errors.cause(raised(wrapped_by_mmengine))) == 'rate must be a number'
    said = errors.message(raised(lambda: in_a_worker(TOLD['ours'])))
    assert said.startswith('ValueError: search steps must not be negative, got -1\n')


def test_how_to_see_more_is_said_where_there_is_more(tmp_path):
    def broken(path):
        raise AttributeError('no such part')

    def load():
        (tmp_path / 'index.json').touch()
        load_pretrained(broken, str(tmp_path), 'a model', 'a library', 'index.json')

    assert errors.message(raised(load)).endswith(
        '=1 before the command shows where this comes from)'
    )
    assert errors.message(raised(TOLD['ours'])) == 'search steps must not be negative, got -1'


@pytest.mark.parametrize('debug', [False, True])
def test_a_command_ends_without_a_traceback(debug, monkeypatch, tmp_path):
    monkeypatch.setenv(errors.DEBUG, '1' if debug else '')
    options = ['--cfg-options', 'gap_hook.search.steps=many', '--work-dir', tmp_path]
    for command in (['train'], ['mmgap', 'train']):  # tools/train.py, and `mmgap train`
        done = run_command(*command, 'gap_resnet18_toybirds', *options)
        assert done.code == 1
        assert 'search steps must be a whole number, got ' in done.output
        assert ('Traceback (most recent call last)' in done.output) == debug
    config = tmp_path / 'config.py'
    config.write_text('model = dict(\n    type=nothing)\n')
    done = run_command('mmgap', 'check', config)
    assert f"config {config}: line 2: NameError: name 'nothing' is not defined" in done.output
    assert ('Traceback (most recent call last)' in done.output) == debug
