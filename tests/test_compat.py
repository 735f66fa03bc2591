# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from mmengine.config import Config
from mmengine.dataset import BaseDataset, InfiniteSampler
from mmengine.logging import HistoryBuffer
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset
from yapf.yapflib.yapf_api import FormatCode

from mmgap import compat

pytestmark = pytest.mark.smoke


def test_only_empty_cast_warnings_are_silenced():
    compat.silence_empty_cast_warning()
    compat.silence_empty_cast_warning()
    network = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)
    records = []
    logger, handler = logging.getLogger('diffusers.models.modeling_utils'), logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        network.to(torch.float32)
        assert not records
        network._keep_in_fp32_modules = ['norm']
        network.to(torch.float32)
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(compat._names_modules)


class Growing(Dataset):
    """Says of each item which version of the data it comes from."""

    def __init__(self, length: int = 8) -> None:
        self.length, self.version = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.version


class Numbers(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(4)]


def test_a_copy_of_a_dataset_knows_no_earlier_one():
    """As where a transform lies at the address of a dataset that was copied and is gone."""
    compat.keep_dataset_copies_apart()
    compat.keep_dataset_copies_apart()
    first, second = Numbers(), Numbers()
    part, second.step = first.get_subset([1]), first
    whole = second.get_subset([0]).step
    assert whole is not part and whole is not first and len(whole) == 4 and len(part) == 1
    second.same = second
    again = second.get_subset([2])
    assert again.same is again and again[0]['number'] == 2


def test_configs_are_left_unformatted(tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.config.config.FormatCode', FormatCode)  # not so in tests
    (tmp_path / 'config.py').write_text('a = dict(b = [1,2])\n')
    config = Config.fromfile(tmp_path / 'config.py')
    formatted = config.pretty_text
    compat.leave_unformatted(config)
    assert config.pretty_text != formatted
    assert Config.fromstring(config.pretty_text, '.py').to_dict() == config.to_dict()


def test_differentiable_call_needs_the_no_grad_wrapper():
    class Changed:
        def __call__(self, prompt):
            return prompt

    with pytest.raises(RuntimeError, match='Changed.__call__ of diffusers'):
        compat.differentiable_call(Changed())

    class Wrapped:
        @torch.no_grad()
        def __call__(self, prompt_embeds):
            return 2 * prompt_embeds

    embeds = torch.ones(2, requires_grad=True)
    assert not Wrapped()(embeds).requires_grad
    assert compat.differentiable_call(Wrapped())(embeds).requires_grad


def test_replaced_dataset_is_the_one_that_is_read():
    loader = DataLoader(Growing(), batch_size=4, shuffle=True)
    other = Growing()
    other.version = 5
    compat.replace_dataset(loader, other)
    assert {int(v) for _, versions in loader for v in versions} == {5}
    with pytest.raises(ValueError, match='built for 8 samples, got 9'):
        compat.replace_dataset(loader, Growing(9))


def test_restarted_workers_see_that_the_data_grew():
    data = Growing()
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)

    def versions():
        return {int(v) for _, batch in loader for v in batch}

    assert versions() == {0}
    data.version = 1
    assert versions() == {0}  # why the workaround is there
    compat.restart_workers(loader)
    assert versions() == {1}


@pytest.mark.parametrize('workers', [0, 2])
def test_infinite_stream_goes_on_where_training_stands(workers):
    def stream():
        data = Growing()
        sampler = InfiniteSampler(data, shuffle=True, seed=3)
        loader = DataLoader(
            data,
            batch_size=3,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return SimpleNamespace(
            dataloader=loader, dataloader_iterator=_InfiniteDataloaderIterator(loader)
        )

    def batches(loop, count):
        return [next(loop.dataloader_iterator) for _ in range(count)]

    expected = [indices.tolist() for indices, _ in batches(stream(), 9)]
    size = len(stream().dataloader.dataset)
    loop = stream()
    seen = batches(loop, 4)
    loop.dataloader.dataset.version = 1
    compat.restart_infinite_iterator(loop, consumed=4)
    seen += batches(loop, 5)
    assert [(indices % size).tolist() for indices, _ in seen] == expected
    passes = [place // size for place in range(12, 27)]  # from the restart on
    assert torch.cat([indices for indices, _ in seen[4:]]).div(size).int().tolist() == passes
    assert [int(versions[0]) for _, versions in seen] == [0] * 4 + [1] * 5


@pytest.fixture
def safe_globals():
    """Allowed classes are process-wide; put them back."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_log_history_of_a_checkpoint_can_be_read(tmp_path, safe_globals):
    history = HistoryBuffer()
    for value in (3.0, np.float64(1.0), 2):
        history.update(value)
    state = dict(log_scalars={'train/loss': history}, resumed_keys={'train/loss': True})
    torch.save(dict(message_hub=state, last=np.float64(2.5)), tmp_path / 'checkpoint.pth')
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    compat.allow_checkpoint_history()
    kept = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    again = kept['message_hub']['log_scalars']['train/loss']
    assert (again.min(), again.max(), again.mean(), again.current()) == (1.0, 3.0, 2.0, 2.0)
    assert kept['last'] == 2.5


class Runs:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class LooksUp:
    """Reaches for a function through ``getattr``, the one name that had to be allowed."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_other_code_in_a_checkpoint_is_refused(tmp_path, safe_globals):
    compat.allow_checkpoint_history()
    for name, thing in (('runs', Runs(tmp_path / 'ran')), ('looks_up', LooksUp())):
        torch.save(dict(state=thing), tmp_path / name)
        with pytest.raises(Exception, match='Weights only load failed|may not look up'):
            torch.load(tmp_path / name, weights_only=True)
    assert not (tmp_path / 'ran').exists()


def test_killed_while_noting_the_latest_checkpoint(tmp_path):
    """As MMEngine leaves it: an empty note, beside it a file that was not written to its end."""
    note = tmp_path / 'last_checkpoint'
    compat.repair_last_checkpoint(tmp_path)
    assert not note.exists()
    for number in (1, 2, 3):
        path = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(weight=torch.zeros(100)), path)
        os.utime(path, (number, number))
    path.write_bytes(path.read_bytes()[:-100])
    for named in ('', str(tmp_path / 'gone.pth')):
        note.write_text(named)
        compat.repair_last_checkpoint(tmp_path)
        assert note.read_text() == str(tmp_path / 'epoch_2.pth')
    note.write_text(str(tmp_path / 'epoch_1.pth'))
    compat.repair_last_checkpoint(tmp_path)
    assert note.read_text() == str(tmp_path / 'epoch_1.pth')
    for path in tmp_path.glob('*.pth'):
        path.unlink()
    compat.repair_last_checkpoint(tmp_path)
    assert not note.exists()
