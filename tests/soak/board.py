# SPDX-License-Identifier: Apache-2.0
"""Which stage a training is in, told through a file that its parent has open too."""

from __future__ import annotations

import functools
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# In the order in which a run comes through them; it begins in the first.
STAGES = ('start', 'search', 'judging', 'synthesis', 'pool reading', 'training', 'refit', 'report')
ONE = struct.Struct('d')
# The stage, when it began, when new work began, whether the process waits, the stage and entry that
# it shall wait in, and for each stage its entries, its seconds and the seconds of its calls.
FIELDS = 6 + 3 * len(STAGES)


class StageBoard:
    """What a training tells of itself, in shared memory: no call and no lock, so it may be killed.

    Args:
        path: A file, made anew if ``fresh``.
        fresh: Whether to begin with zeros.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.write_bytes(bytes(FIELDS * ONE.size))
        with open(path, 'r+b') as file:
            self._memory = mmap.mmap(file.fileno(), FIELDS * ONE.size)

    def _get(self, number: int) -> float:
        return ONE.unpack_from(self._memory, number * ONE.size)[0]

    def _set(self, number: int, value: float) -> None:
        ONE.pack_into(self._memory, number * ONE.size, value)

    @property
    def stage(self) -> str:
        """The stage that was entered last."""
        return STAGES[int(self._get(0))]

    def _place(self, stage: str, what: int) -> int:
        return 6 + what * len(STAGES) + STAGES.index(stage)

    @property
    def new_work_at(self) -> float | None:
        """``time.monotonic()`` when work began that had not been done before a resume."""
        return self._get(2) or None

    @property
    def waits(self) -> bool:
        """Whether the process has come to where it shall wait."""
        return bool(self._get(3))

    def wait_in(self, stage: str, entry: int) -> None:
        """Let the process stop itself when it enters a stage for at least this time."""
        self._set(4, STAGES.index(stage))
        self._set(5, entry)

    def entries(self, stage: str) -> int:
        """How often a stage was entered: steps, batches, iterations."""
        return int(self._get(self._place(stage, 0)))

    def seconds(self, stage: str) -> float:
        """Seconds spent in a stage, what comes between it and the next one included."""
        return self._get(self._place(stage, 1))

    def seconds_of_calls(self, stage: str) -> float:
        """Seconds spent in the calls of a stage alone."""
        return self._get(self._place(stage, 2))

    def enter(self, stage: str, works: bool) -> str:
        """A stage begins; the name of the one before."""
        now, before = time.monotonic(), self.stage
        if self._get(1):
            place = self._place(before, 1)
            self._set(place, self._get(place) + now - self._get(1))
        self._set(1, now)
        self._set(self._place(stage, 0), self.entries(stage) + 1)
        if works and self.new_work_at is None:
            self._set(2, now)
        self._set(0, STAGES.index(stage))
        wanted = self._get(5)
        if wanted and STAGES.index(stage) == self._get(4) and self.entries(stage) >= wanted:
            # Seen from outside, the shortest stages are over before anything comes of it.
            self._set(5, 0)
            self._set(3, 1)
            os.kill(os.getpid(), signal.SIGSTOP)
        return before

    def add_call(self, stage: str, seconds: float) -> None:
        """A call of a stage is over, and took these."""
        place = self._place(stage, 2)
        self._set(place, self._get(place) + seconds)


def watch(board: StageBoard) -> None:
    """From here on, what this process trains tells the board its stages."""
    from mmengine.model import BaseModel, MMDistributedDataParallel

    from mmgap.datasets import SyntheticMixDataset
    from mmgap.feedback import ModelCritic
    from mmgap.hooks import InjectionHook, injection_hook, runner_access
    from mmgap.injection import Refit
    from mmgap.manifest import ManifestReader
    from mmgap.search import PromptSearch
    from mmgap.synthesis import Synthesizer

    def tell(owner: Any, name: str, stage: str, works: bool = False, inside: bool = False) -> None:
        plain: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(plain)
        def told(*args: Any, **kwargs: Any) -> Any:
            before, began = board.enter(stage, works), time.monotonic()
            result = plain(*args, **kwargs)
            board.add_call(stage, time.monotonic() - began)
            if inside:  # of another stage, which goes on
                board.enter(before, False)
            return result

        setattr(owner, name, told)

    tell(PromptSearch, 'step', 'search', works=True)
    tell(PromptSearch, '_evaluate', 'judging', works=True)
    tell(ModelCritic, '__call__', 'judging', inside=True)
    tell(injection_hook, 'judge_images', 'judging', works=True)
    tell(Synthesizer, '_draw_once', 'synthesis', works=True)
    tell(ManifestReader, 'read', 'pool reading')
    tell(SyntheticMixDataset, 'refresh', 'pool reading')
    for model in (BaseModel, MMDistributedDataParallel):
        tell(model, 'train_step', 'training', works=True)
    tell(Refit, 'run', 'refit', works=True)
    tell(runner_access, 'evaluate', 'report', works=True)
    tell(InjectionHook, '_write_summary', 'report')
