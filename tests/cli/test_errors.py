# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmgap.cli import errors
from tests.support.commands import run_command


def raised(act) -> Exception:
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def written():
    raise ValueError('search steps must be positive, got -1; give more')


def foreseen_by_nobody():
    return {}['no such key']


def wrapped_by_mmengine():
    try:
        raise TypeError('rate must be a number')
    except TypeError as error:
        raise TypeError(f'{error} in <hook at 0x7f>') from None


def in_a_worker():
    from torch._utils import ExceptionWrapper

    try:
        raise ValueError('image a.jpg cannot be read:\nit is cut')
    except ValueError:
        ExceptionWrapper(where='in DataLoader worker process 0').reraise()


def test_messages_that_somebody_wrote_are_told():
    assert errors.is_told(raised(written))
    assert errors.is_told(raised(lambda: open('/no/such/file')))
    assert not errors.is_told(raised(foreseen_by_nobody))
    assert not errors.is_told(raised(lambda: 1 / 0))


def test_what_wraps_an_error_is_taken_off():
    assert str(errors.cause(raised(wrapped_by_mmengine))) == 'rate must be a number'
    said = errors.message(raised(in_a_worker))
    assert said.startswith('ValueError: image a.jpg cannot be read:\nit is cut\n')


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
