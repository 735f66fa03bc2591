# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgap import pool as pool_module
from mmgap.pool import SamplePool
from tests.support.pools import ABOUT, picture


def fill(folder, count: int = 3) -> SamplePool:
    pool = SamplePool(folder)
    for i in range(count):
        pool.append(picture(i), **{**ABOUT, 'seed': i})
    return pool


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_what_is_written_is_read(tmp_path):
    assert len(SamplePool(tmp_path / 'none')) == 0 and not (tmp_path / 'none').exists()
    written = fill(tmp_path)
    read = SamplePool(tmp_path)
    assert read.samples == written.samples and len(read) == 3
    assert files(tmp_path) == [f'images/{i:06d}.png' for i in range(3)] + ['manifest.jsonl']
    lines = [json.loads(line) for line in read.manifest.read_text().splitlines()]
    facts = dict(ABOUT, seed=2, file='images/000002.png', bytes=lines[2]['bytes'])
    assert lines[2] == dict(facts, agreement=None, critic=None, kept=True)
    for i, sample in enumerate(read.samples):
        np.testing.assert_array_equal(np.array(Image.open(read.path(sample))), picture(i))


def test_manifest_without_a_critics_fields_is_read(tmp_path):
    written = fill(tmp_path)
    lines = [json.loads(line) for line in written.manifest.read_text().splitlines()]
    for line in lines:
        del line['agreement'], line['critic'], line['kept']
    written.manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert SamplePool(tmp_path).samples == written.samples


def test_lines_name_cost_and_usefulness_where_there_are_some(tmp_path):
    pool = SamplePool(tmp_path)
    told = dict(usefulness=0.0, useful_by='loss@0', evaluations=0.0)
    for fields in ({}, told, dict(evaluations=9.5)):
        pool.append(picture(0), **ABOUT, **fields)
    lines = [json.loads(line) for line in pool.manifest.read_text().splitlines()]
    named = [{name: line[name] for name in told if name in line} for line in lines]
    assert named == [{}, told, dict(evaluations=9.5)]
    assert not any(name.startswith('depth') for line in lines for name in line)
    # As those of older versions, whose samples have none.
    samples = SamplePool(tmp_path).samples
    assert samples == pool.samples and vars(samples[0]).items() >= dict.fromkeys(told).items()


class FullDisk:
    """An open file whose disk fills up after a few bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *about):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        self.file.write(data[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('what', ['000002.png', 'manifest.jsonl'])
@pytest.mark.parametrize('there', [2, 0])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, what, there):
    if there == 0:
        what = what.replace('000002', '000000')
    pool = fill(tmp_path, there)
    before = pool.manifest.read_bytes() if there else b''
    images = [name for name in files(tmp_path) if name.endswith('.png')]

    def opened(path, mode='r', *args, **kwargs):
        file = open(path, mode, *args, **kwargs)
        return FullDisk(file, room=7) if what in str(path) and mode in ('wb', 'ab') else file

    with monkeypatch.context() as patch:
        for module in (pool_module, sys.modules['mmgap.files']):
            patch.setattr(module, 'open', opened, raising=False)
        with pytest.raises(OSError, match=f'No space.*{what}'):
            pool.append(picture(2), **ABOUT)
    assert [name for name in files(tmp_path) if name != 'manifest.jsonl'] == images
    assert there or not list(tmp_path.iterdir())
    assert (pool.manifest.read_bytes() if pool.manifest.exists() else b'') == before
    assert len(pool) == len(SamplePool(tmp_path)) == there
    pool.append(picture(2), **ABOUT)
    assert SamplePool(tmp_path).samples == pool.samples and len(pool) == there + 1


@pytest.mark.parametrize('left', [1, 40, -1])
def test_torn_line_is_dropped_by_the_next_writer_only(tmp_path, left):
    pool = fill(tmp_path)
    whole = pool.manifest.read_bytes()
    last = whole.rindex(b'\n', 0, -1) + 1
    torn = whole[: last + left] if left > 0 else whole[:left]
    pool.manifest.write_bytes(torn)
    again = SamplePool(tmp_path)
    assert again.samples == pool.samples[:2]
    assert pool.manifest.read_bytes() == torn  # a reader changes nothing
    again.append(picture(2), **{**ABOUT, 'seed': 2})
    assert pool.manifest.read_bytes() == whole
    pool.manifest.write_bytes(torn)
    again = SamplePool(tmp_path)
    assert again.keep(lambda number, sample: number < 1) == 1
    again.append(picture(1), **{**ABOUT, 'seed': 1})
    assert SamplePool(tmp_path).samples == pool.samples[:2]


def append_for_ever(folder: Path) -> None:
    pool = SamplePool(folder)
    while True:
        pool.append(picture(len(pool)), **{**ABOUT, 'seed': len(pool)})


def test_killed_while_appending(tmp_path):
    """SIGKILL at any moment leaves a pool that can be read and goes on."""
    count = 0
    for wait in np.linspace(0, 0.02, 12):
        process = get_context('fork').Process(target=append_for_ever, args=(tmp_path,))
        process.start()
        limit = time.time() + 60
        while len(list(tmp_path.glob('images/*.png'))) < count + 4:
            assert process.is_alive() and time.time() < limit
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.join()
        pool = SamplePool(tmp_path)
        assert process.exitcode == -signal.SIGKILL and len(pool) >= count + 3
        count = len(pool)
        assert [sample.seed for sample in pool.samples] == list(range(count))
    for i, sample in enumerate(pool.samples):
        np.testing.assert_array_equal(np.array(Image.open(pool.path(sample))), picture(i))


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda path: path.unlink(), r'line 2 names images/000001\.png, which is missing'),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r'000001\.png, which has \d+ of'),
    ],
)
def test_missing_or_truncated_image_is_an_error(tmp_path, damage, words):
    pool = fill(tmp_path)
    damage(pool.path(pool.samples[1]))
    with pytest.raises(ValueError, match=words):
        SamplePool(tmp_path)


@pytest.mark.parametrize('what', ['image', 'folder'])
def test_a_link_out_of_the_pool_is_an_error(tmp_path, what):
    pool = fill(tmp_path / 'pool')
    image = pool.path(pool.samples[1])
    place = image if what == 'image' else image.parent
    place.rename(tmp_path / place.name)
    place.symlink_to(tmp_path / place.name)
    with pytest.raises(ValueError, match='which is a link to .*, outside the pool'):
        SamplePool(tmp_path / 'pool')
    (tmp_path / 'linked').symlink_to(tmp_path / 'pool')
    place.unlink()
    (tmp_path / place.name).rename(place)
    assert len(SamplePool(tmp_path / 'linked')) == len(pool)  # the pool itself may be one


def test_a_pool_must_be_a_folder(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'nothing')
    for name, words in (('file', 'it is a file'), ('link', 'nothing, which does not exist')):
        with pytest.raises(NotADirectoryError, match=words):
            SamplePool(tmp_path / name)


def edited(**changes):
    return lambda line: json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    'edit, words',
    [
        (lambda line: 'hello', 'line 2 is not JSON'),
        (lambda line: '\udcff\udcfe', 'line 2 is not JSON'),
        (lambda line: '[1, 2]', 'line 2 must have the fields'),
        (lambda line: '{"file": "images/000001.png"}', 'line 2 must have the fields'),
        (edited(extra=1), 'line 2 must have the fields'),
        (edited(file='../../etc/passwd'), 'line 2: file must be images/NUMBER.png'),
        (edited(file=None), 'line 2: file must be images/NUMBER.png'),
        (edited(file='/etc/passwd'), 'line 2: file must be images/NUMBER.png'),
        (edited(file='images/../../000001.png'), 'line 2: file must be images/NUMBER.png'),
        (edited(depth_file='depth/../../x.png'), 'line 2: depth_file must be depth/NUMBER.png'),
        (edited(label='1'), "line 2: label must be a whole number, got '1'"),
        (edited(seed=1.5), 'line 2: seed must be a whole number, got 1.5'),
        (edited(kept=None), 'line 2: kept must be true or false, got None'),
        (edited(file='images/000000.png'), r'line 2 names images/000000\.png, as line 1 does'),
        (lambda line: f'{line},{line}', 'line 2 is not JSON'),
    ],
)
def test_garbage_lines_are_errors(tmp_path, edit, words):
    pool = fill(tmp_path)
    lines = pool.manifest.read_text().splitlines()
    lines[1] = edit(lines[1])
    pool.manifest.write_text('\n'.join(lines) + '\n', errors='surrogateescape')
    before = files(tmp_path)
    with pytest.raises(ValueError, match=words):
        SamplePool(tmp_path)
    assert files(tmp_path) == before


def test_keep_drops_the_rest_from_the_first_unwanted(tmp_path):
    pool = fill(tmp_path, 5)
    assert pool.keep(lambda number, sample: True) == 0
    assert pool.keep(lambda number, sample: number != 2 and sample.seed == number) == 3
    assert [s.seed for s in pool.samples] == [0, 1]
    assert SamplePool(tmp_path).samples == pool.samples
    assert files(tmp_path) == ['images/000000.png', 'images/000001.png', 'manifest.jsonl']
    pool.append(picture(2), **{**ABOUT, 'seed': 2})
    assert pool.manifest.read_bytes() == fill(tmp_path / 'other').manifest.read_bytes()


def test_lines_taken_out_by_hand(tmp_path):
    """A user drops a bad image; later ones do not get the name of one that is still there."""
    pool = fill(tmp_path)
    lines = pool.manifest.read_text().splitlines(keepends=True)
    pool.manifest.write_text(lines[0] + lines[2])
    pool = SamplePool(tmp_path)
    pool.append(picture(9), **ABOUT)
    assert [s.file for s in SamplePool(tmp_path).samples] == [
        f'images/{i:06d}.png' for i in (0, 2, 3)
    ]
