# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmgap.loop import GAPSettings, Loop
from mmgap.loop.parts import build_critic
from mmgap.search import SearchSettings


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


@pytest.mark.parametrize('count', [0, 2])
def test_a_config_must_have_one_hook(count):
    config = Config(dict(custom_hooks=[dict(type='mmgap.GAPHook', generator={})] * count))
    with pytest.raises(ValueError, match=f'must have one mmgap.GAPHook, None has {count}'):
        Loop.from_config(config)
    hooks = [dict(type=name) for name in ('mmgap.GAPHook', 'mmgap.InjectionHook')]
    with pytest.raises(ValueError, match='it has 2 .GAPHook, InjectionHook.'):
        Loop.from_config(Config(dict(custom_hooks=hooks)))


def test_variants_share_what_they_do_not_change(monkeypatch):
    """A critic that two of them have is built once, another one for itself."""
    built = []
    monkeypatch.setattr(
        'mmgap.loop.round.build_critic', lambda settings, *_: built.append(settings) or settings
    )
    settings = GAPSettings(generator={}, critic=dict(type='a'))
    sources = SimpleNamespace(classes=('a', 'b'))
    loop = Loop(settings, Waiting(), sources, Config())
    assert loop.critic['type'] == 'a'
    other = loop.variant(search=SearchSettings(steps=3), critic=dict(type='b'))
    again = other.variant(critic=dict(type='a'))
    assert [one.critic['type'] for one in (loop, other, again, loop)] == ['a', 'b', 'a', 'a']
    assert built == [dict(type='a'), dict(type='b')]
    assert (loop.settings.search.steps, again.settings.search.steps) == (1000, 3)
    with pytest.raises(ValueError, match='build another Loop'):
        loop.variant(generator={})


def test_a_critic_is_a_config_or_none():
    generator = SimpleNamespace(critic=None)
    assert [build_critic(value, generator, 'ab') for value in (None, False, {})] == [None] * 3
    with pytest.raises(ValueError, match='critic must be a config, None or False, got True'):
        build_critic(True, generator, 'ab')
