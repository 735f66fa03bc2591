# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmgap.files import (
    fingerprint,
    read_json,
    read_text,
    weights_fingerprint,
    write_bytes,
    write_json,
)
from mmgap.seeds import derive_rng, derive_seed


def test_files_are_written_whole(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'a.json'
    write_json(path, dict(a=[1, None], b='é'))
    assert json.loads(path.read_text()) == dict(a=[1, None], b='é')
    write_bytes(path, b'other')
    assert path.read_bytes() == b'other'
    assert os.listdir(path.parent) == ['a.json']


def test_full_disk_leaves_the_old_file(tmp_path):
    """The system itself refuses to write more than 64 kB."""
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(OSError):
            write_bytes(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.bin']


def test_killed_writer_leaves_nothing_for_good(tmp_path):
    """SIGKILL while the data are on their way to the disk; then the file is written again."""
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    code = (
        'import os, signal, sys; from mmgap.files import write_bytes; '
        'os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); '
        'write_bytes(sys.argv[1], bytes(100))'
    )
    killed = subprocess.run([sys.executable, '-c', code, str(path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'old' and len(os.listdir(tmp_path)) == 2
    write_bytes(path, b'new')
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['a.bin']


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', object())
    assert (tmp_path / 'a.json').read_text() == '1\n'


@pytest.mark.parametrize(
    'read, data, words',
    [
        (read_text, 'Vögel'.encode('latin-1'), r'file is not in UTF-8 \(byte 1'),
        (read_json, b'{"a": ', 'file is not JSON.*delete it'),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, read, data, words):
    path = tmp_path / 'file'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read(path)
    path.write_bytes('\ufeff"Vögel"'.encode() if read is read_text else b'"V"')
    assert read(path) in ('"Vögel"', 'V')


def test_fingerprint_names_values():
    assert fingerprint(dict(a=1, b=(2, 3))) == fingerprint(dict(b=[2, 3], a=1))
    values = [1, 2, '1', [1], dict(a=1), dict(a=None), 1.5]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize('index', [0, 1, 4095, 54321, 99_999])
def test_any_weight_changes_the_fingerprint(index):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 100, bias=False), nn.BatchNorm1d(100))
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(model)
    with torch.no_grad():
        model[0].weight.view(-1)[index] += 1e-4
    changed = weights_fingerprint(model)
    model[1].num_batches_tracked += 1
    assert len({before, changed, weights_fingerprint(model)}) == 3


def test_fingerprint_does_not_depend_on_how_sums_are_split(monkeypatch):
    """Half of a sum by each of two threads has other last bits than the sum by one."""
    torch.manual_seed(0)
    model = nn.Linear(2000, 1000)
    before, threads = weights_fingerprint(model), torch.get_num_threads()
    total = torch.Tensor.sum

    def split(self, **kwargs):
        return sum(total(part, **kwargs) for part in self.flatten().chunk(7))

    try:
        torch.set_num_threads(3)
        assert weights_fingerprint(model) == before
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch.Tensor, 'sum', split)
    assert weights_fingerprint(model) == before
    assert weights_fingerprint(model.half()) != before


def test_seeds_depend_on_all_their_parts_and_on_nothing_else():
    parts = [(0,), (1,), (0, 'a'), ('a', 0), (0, 'a', 1), (0, 'a1')]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_rng(1, 'x').integers(1 << 60) == derive_rng(1, 'x').integers(1 << 60)
    code = 'from mmgap.seeds import derive_seed; print(derive_seed(0, "a", 1))'
    environment = dict(os.environ, PYTHONHASHSEED='7')
    printed = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(printed.stdout) == derive_seed(0, 'a', 1)
