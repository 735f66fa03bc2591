# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
from mmengine.config import Config

from tests.support.benchmarks import CONFIG


@pytest.fixture(scope='session')
def birds_as_shipped() -> Config:
    return Config.fromfile(CONFIG)


@pytest.fixture
def birds(birds_as_shipped) -> Config:
    """The config of the benchmark on ToyBirds, to be changed."""
    return copy.deepcopy(birds_as_shipped)
