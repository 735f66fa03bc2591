# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmgap.loop import GAPSettings, Loop


class Waiting:
    """A generator of 4 bytes."""

    device = home = torch.device('cuda')

    def memory(self) -> int:
        return 4

    def to(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.mark.parametrize('training, where', [(None, 'cpu'), (6, 'cuda'), (7, 'cpu')])
def test_the_generator_waits_where_there_is_room(training, where, monkeypatch):
    messages = []
    monkeypatch.setattr('mmgap.loop.round.memory', lambda: 10)
    monkeypatch.setattr(MMLogger.get_current_instance(), 'info', messages.append)
    loop = Loop(GAPSettings(generator={}), Waiting(), None, Config())
    loop.make_room(training)
    assert loop.generator.device.type == where
    assert f'waits on the {"CPU" if where == "cpu" else "GPU"}' in messages[0]
    loop.wake()
    assert loop.generator.device.type == 'cuda'
