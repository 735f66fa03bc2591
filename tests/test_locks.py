# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from multiprocessing import get_context

import pytest

from mmgap.locks import locked
from mmgap.pool import SamplePool
from tests.support.pools import ABOUT, picture


def may_write(folder, answers) -> None:
    try:
        with locked(folder):
            answers.put('yes')
    except BlockingIOError as error:
        answers.put(str(error))


def asked_elsewhere(folder) -> str:
    context = get_context('fork')
    answers = context.Queue()
    process = context.Process(target=may_write, args=(folder, answers))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    return answer


def test_one_process_at_a_time_has_a_folder(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path / '..' / tmp_path.name):  # its own, as often as it likes
            pass
        assert asked_elsewhere(tmp_path).startswith(f'another process writes to {tmp_path}; wait')
    assert asked_elsewhere(tmp_path) == 'yes'
    assert not os.listdir(tmp_path)


def test_a_pool_reads_what_others_have_written_meanwhile(tmp_path):
    first, second = SamplePool(tmp_path / 'pool'), SamplePool(tmp_path / 'pool')
    with first.writing():
        first.append(picture(0), **ABOUT)
    with second.writing():
        second.append(picture(1), **ABOUT)
    assert [one.file for one in SamplePool(tmp_path / 'pool').samples] == [
        'images/000000.png',
        'images/000001.png',
    ]
    with pytest.raises(KeyboardInterrupt), SamplePool(tmp_path / 'none').writing():
        raise KeyboardInterrupt
    assert not (tmp_path / 'none').exists()
