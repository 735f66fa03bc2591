# SPDX-License-Identifier: Apache-2.0
"""Disks that are full or closed, clocks that jump, and commands that are stopped."""

from __future__ import annotations

import builtins
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from mmgap.locks import locked
from mmgap.pool import SamplePool
from tests.soak.stage import Stage, case
from tests.support.commands import Finished

DRAW = ('--text', 'a b', '--num', 2)


@case('a disk that is full at the first image', 'generate')
def full_first(stage: Stage) -> None:
    pool = stage.folder / 'pool'
    config = stage.config()
    with full_disk('000000.png'):
        stage.refuses('generate', config, *DRAW, '--out', pool, says=['No space left', pool])
    stage.accepts('generate', config, *DRAW, '--out', pool)
    assert len(SamplePool(pool)) == 2


@case('a disk that is full at the manifest', 'generate')
def full_manifest(stage: Stage) -> None:
    pool = stage.folder / 'pool'
    config = stage.config()
    with full_disk('manifest.jsonl'):
        stage.refuses('generate', config, *DRAW, '--out', pool, says=['No space left', pool])
    stage.accepts('generate', config, *DRAW, '--out', pool)
    assert len(SamplePool(pool)) == 2


@case('a disk that is full at the prompts', 'search')
def full_prompts(stage: Stage) -> None:
    out = stage.folder / 'prompts'
    with full_disk('.safetensors'):
        stage.refuses('search', stage.config(), '--out', out, says=['No space left', out])


@case('a disk that is full in the middle of a round', 'train, then --resume')
def full_round(stage: Stage) -> None:
    config = stage.config()
    with full_disk('000001.png'):
        stage.refuses('train', config, says=['No space left', stage.folder / 'run'])
    stage.accepts('train', config, '--resume')
    assert stage.summary()['images'] == 2


@case('a disk that is full at the summary', 'train')
def full_summary(stage: Stage) -> None:
    with full_disk('summary.json'):
        stage.refuses('train', stage.config(), says=['No space left', 'summary.json'])


@case('no file may be larger than 400 bytes (RLIMIT_FSIZE)', 'generate')
def limited_size(stage: Stage) -> None:
    pool, config = stage.folder / 'pool', stage.config()

    append = SamplePool.append

    def limited(self, *args, **kwargs):
        # Not before: configs and logs are larger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        try:
            return append(self, *args, **kwargs)
        finally:
            most = resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def act() -> Finished:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with patch.object(SamplePool, 'append', limited):
            return stage.run('generate', config, *DRAW, '--out', pool)

    stage.check_refused(stage.forked(act), ['File too large', pool])


@case('an --out in /proc, where nothing can be made', 'generate')
def out_in_proc(stage: Stage) -> None:
    stage.refuses('generate', stage.config(), *DRAW, '--out', '/proc/pool', says=['/proc/pool'])


@case('a work_dir in /proc, where nothing can be made', 'train')
def work_in_proc(stage: Stage) -> None:
    config = stage.config()
    stage.refuses('train', config, '--work-dir', '/proc/work', says=['/proc/work'])


@case('a work_dir that is a file', 'train')
def work_is_a_file(stage: Stage) -> None:
    path = stage.folder / 'run'
    path.write_text('work')
    stage.refuses('train', stage.config(), says=[path])


@case('a folder that may be read only', 'masks')
def masks_read_only(stage: Stage) -> None:
    root, segmentations = stage.birds(), stage.folder / 'segmentations'
    for path in root.rglob('*_mask.png'):
        target = segmentations / path.relative_to(root).with_name(path.name.replace('_mask', ''))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    closed = OSError(errno.EROFS, os.strerror(errno.EROFS))

    def refuse(path, mode='r', *args, **kwargs):
        if str(path).startswith(str(root)) and 'r' not in mode:
            raise OSError(closed.errno, closed.strerror, str(path))
        return builtins.open(path, mode, *args, **kwargs)

    with patch('mmgap.files.open', refuse, create=True):
        says = ['Read-only file system', root]
        stage.refuses('masks', root, '--segmentations', segmentations, says=says)
    assert not list(root.rglob('*_mask.png'))


@case('masks that is stopped in its middle, and run again', 'masks')
def masks_stopped(stage: Stage) -> None:
    root, segmentations = stage.birds(), stage.folder / 'segmentations'
    before = {}
    for path in root.rglob('*_mask.png'):
        target = segmentations / path.relative_to(root).with_name(path.name.replace('_mask', ''))
        target.parent.mkdir(parents=True, exist_ok=True)
        before[path] = path.read_bytes()
        path.rename(target)

    def act() -> Finished:
        count = []

        def replace(source, target):
            count.append(target)
            if len(count) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            os.rename(source, target)

        with patch('mmgap.files.os.replace', replace):
            return stage.run('masks', root, '--segmentations', segmentations)

    stage.forked(act)
    stage.litter.clear()  # what a kill leaves is taken over by the next run
    done = stage.accepts('masks', root, '--segmentations', segmentations)
    assert f'{len(before)} of {len(before)} images have masks, 4 of them from before' in done.output
    assert {path for path in root.rglob('*_mask.png')} == set(before)
    assert not list(root.rglob('.*'))


@case('Ctrl-C in the middle of a round, and --resume', 'train')
def interrupted(stage: Stage) -> None:
    config = stage.config()

    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt

    with patch.object(SamplePool, 'append', stop):
        try:
            stage.run('train', config)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError('was not stopped')
    stage.accepts('train', config, '--resume')
    assert stage.summary()['images'] == 2


@case('a clock that jumps back by an hour at each look', 'train')
def clock_back(stage: Stage) -> None:
    jump(stage, -3600.0)


@case('a clock that jumps forward by a day at each look', 'train')
def clock_forward(stage: Stage) -> None:
    jump(stage, 86400.0)


@case('two trainings in one work_dir at once', 'train')
def two_trainings(stage: Stage) -> None:
    config, work = stage.config(), stage.folder / 'run'
    work.mkdir()
    with locked(work):
        done = stage.forked(lambda: stage.run('train', config))
    stage.check_refused(done, [work, 'another process'])
    stage.accepts('train', config)


@case('a work_dir behind a symbolic link', 'train')
def work_linked(stage: Stage) -> None:
    (stage.folder / 'elsewhere').mkdir()
    (stage.folder / 'run').symlink_to(stage.folder / 'elsewhere')
    stage.accepts('train', stage.config())
    assert stage.summary()['images'] == 2


# What the cases share


def jump(stage: Stage, by: float) -> None:
    """Train by a clock that jumps; all else must be as by a clock that does not."""
    real, looks = time.time, []

    def clock() -> float:
        looks.append(None)
        return real() + by * len(looks)

    config = stage.config()
    # MMEngine names folders after the time, which is not about mmgap.
    with patch('mmgap.hooks.injection_hook.time.time', clock):
        stage.accepts('train', config)
    assert stage.summary()['images'] == 2
    assert all(0 <= value < 600 for value in stage.summary()['seconds'].values())


class full_disk:
    """While open, files whose name ends so take 7 bytes and no more."""

    def __init__(self, name: str) -> None:
        self.patches = [
            patch(f'mmgap.{module}.open', self._opened(name), create=True)
            for module in ('files', 'pool')
        ]

    def __enter__(self) -> None:
        for one in self.patches:
            one.start()

    def __exit__(self, *about: object) -> None:
        for one in self.patches:
            one.stop()

    @staticmethod
    def _opened(name: str) -> Callable:
        def opened(path, mode='r', *args, **kwargs):
            file = builtins.open(path, mode, *args, **kwargs)
            short = Path(path).name.removesuffix('.tmp')
            return _Full(file, path) if short.endswith(name) and mode in ('wb', 'ab') else file

        return opened


class _Full:
    def __init__(self, file, path) -> None:
        self.file, self.path = file, path

    def __enter__(self):
        return self

    def __exit__(self, *about: object) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        self.file.write(data[:7])
        self.file.flush()
        # As the system does it: without the path.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
