# SPDX-License-Identifier: Apache-2.0
"""One training with the hook that several tests look at, and what they compare with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.commands import process_state
from tests.support.devices import see_no_gpu
from tests.support.miniature import draw_waterbirds
from tests.support.recorder import Recorder, train
from tests.support.small_config import small_config


@dataclass(frozen=True)
class Trained:
    """What a training has left, and what it looked like from the inside."""

    work_dir: Path
    recorder: Recorder


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """A miniature of Waterbirds with 18 images to train on and 16 to test on."""
    return draw_waterbirds(tmp_path_factory.mktemp('birds'), per_group=4)


@pytest.fixture(scope='session')
def whole_run(data, tiny_sd, tmp_path_factory) -> Trained:
    """The small config with two workers, trained once from beginning to end."""
    work_dir = tmp_path_factory.mktemp('whole_run')
    with pytest.MonkeyPatch.context() as patch, process_state():
        see_no_gpu(patch)
        torch.set_num_threads(1)
        return Trained(work_dir, train(small_config(data, tiny_sd, work_dir, workers=2)))


@pytest.fixture
def as_whole_run(on_cpu) -> Iterator[None]:
    """For tests of equality to the bit with ``whole_run``: the same device and threads."""
    with process_state():
        torch.set_num_threads(1)
        yield
