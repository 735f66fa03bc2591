# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests, and the device they run on. Nothing may reach the network."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', MPLBACKEND='agg')

import pytest
import torch

from tests.support.datasets import DrawnDataset, DrawnDepth
from tests.support.devices import see_no_gpu

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
# Two at most; side by side (`pytest -n N`) each its share: more threads than cores make small
# torch jobs many times slower, also those in processes that tests start.
THREADS = min(2, max(1, CPUS // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))))
os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS))
torch.set_num_threads(THREADS)
# Else a GPU rounds the factors of convolutions to 10 bits, and results differ by 1e-3.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False
# And takes algorithms that sum in another order each time.
torch.backends.cudnn.deterministic = True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--device',
        choices=('cpu', 'cuda', 'mock'),
        help="where networks run; MMEngine's choice if not given, a GPU where there is one. "
        "'mock': an accelerator in the host's memory, to find what mixes devices without a GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption('--device')
    if device in ('cpu', 'mock'):
        # Before CUDA starts; processes that tests start inherit it.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    from mmengine.config import config as configs
    from mmengine.dataset import base_dataset
    from mmengine.device import get_device, utils

    # Every checkpoint has the config as text, whose layout takes yapf a second each time.
    configs.FormatCode = lambda text, **_: (text, True)
    # It collects garbage for each dataset that it builds, among all that tests have imported.
    base_dataset.gc = SimpleNamespace(collect=int)
    if device == 'mock':
        from tests.support.mock_device import load_mock_device

        load_mock_device()
        utils.DEVICE = device
    if device and get_device() != device:
        raise pytest.UsageError(f'--device {device}: MMEngine finds {get_device()} alone')
    if get_device() == 'cuda':
        # From here on it does not matter if a test hides the GPUs from processes it starts.
        torch.cuda.init()
        torch.cuda.device_count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from mmengine.device import get_device

    if get_device() == 'cuda':
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='no GPU'))


def pytest_collection_finish() -> None:
    # What modules hold stays anyway, and need not be gone through.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get('skipped', [])
    # A file skipped as a whole has no keywords.
    count = sum('gpu' in getattr(report, 'keywords', ()) for report in skipped)
    if count:
        terminalreporter.write_line(f'{count} gpu tests skipped: no GPU')


@pytest.fixture(scope='session')
def device() -> torch.device:
    """Where models are put if nobody says where."""
    from mmengine.device import get_device

    return torch.device(get_device())


@pytest.fixture(scope='session')
def tolerance(device) -> float:
    """How far two images in [0, 1] may be apart that differ in the order of sums alone."""
    # cuDNN picks other algorithms for other batch sizes and layouts.
    return 1e-4 if device.type == 'cuda' else 1e-5


@pytest.fixture
def on_cpu(monkeypatch) -> None:
    """For tests about the CPU, as of equality to the bit, which is claimed there alone."""
    see_no_gpu(monkeypatch)


@pytest.fixture(scope='session')
def tiny_sd(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion folder with a UNet of 4 input channels."""
    from tests.support.tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp('sd4'))


@pytest.fixture(scope='session')
def tiny_sd_9(tmp_path_factory) -> Path:
    """The same with 9 input channels."""
    from tests.support.tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp('sd9'), in_channels=9)


@pytest.fixture(scope='session')
def waterbirds_run(tmp_path_factory, tiny_sd) -> Path:
    """A folder with ``config.py``, ResNet-50 on Waterbirds in small, and ``work``, its training.

    On the CPU: tests compare with it to the bit.
    """
    from mmengine.runner import Runner

    from tests.support.commands import process_state
    from tests.support.configs import classification_config
    from tests.support.miniature import draw_waterbirds

    folder = tmp_path_factory.mktemp('waterbirds')
    data = draw_waterbirds(folder / 'data', per_group=4)
    config = classification_config('ap_resnet50_waterbirds', data, tiny_sd, folder / 'work')
    config.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    config.model.head.in_channels = 64
    config.dump(folder / 'config.py')
    with pytest.MonkeyPatch.context() as patch, process_state():
        see_no_gpu(patch)
        Runner.from_cfg(config).train()
    return folder


@pytest.fixture
def drawn(tmp_path) -> DrawnDataset:
    """Twelve noise images with square masks, two classes."""
    return DrawnDataset(tmp_path / 'drawn')


@pytest.fixture(scope='session')
def tiny_controlnet(tmp_path_factory) -> Path:
    """A depth ControlNet for ``tiny_sd``."""
    from tests.support.tiny import save_tiny_controlnet

    return save_tiny_controlnet(tmp_path_factory.mktemp('controlnet'))


@pytest.fixture(scope='session')
def tiny_xl(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion XL folder with a UNet of 4 input channels."""
    from tests.support.tiny import save_tiny_xl

    return save_tiny_xl(tmp_path_factory.mktemp('xl'))


@pytest.fixture
def drawn_depth(tmp_path) -> DrawnDepth:
    """Six noise images with depth maps in millimetres, unknown in their first rows."""
    return DrawnDepth(tmp_path / 'drawn_depth')
