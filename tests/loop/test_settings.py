# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmgap.feedback import Critic, Feedback
from mmgap.hooks import GAPHook
from mmgap.injection import InjectionSettings
from mmgap.loop import GAPSettings
from mmgap.loop.parts import settings_of
from mmgap.search import SearchSettings
from mmgap.synthesis import SynthesisSettings


def test_a_hook_is_told_the_same_in_dicts_and_in_settings():
    dicts = dict(
        type='mmgap.GAPHook', generator={}, search=dict(steps=3), synthesis=dict(cross=False)
    )
    settings = GAPSettings.from_config(dicts)
    assert settings.search == SearchSettings(steps=3)
    assert settings.synthesis == SynthesisSettings(cross=False)
    assert GAPSettings.from_config(vars(settings)) == settings
    assert GAPSettings.from_config(dict(generator={})) == GAPSettings(generator={})
    budget = GAPSettings(generator={}, budget=10, rounds=3, start=2, interval=5)
    assert [budget.images_of(i) for i in range(3)] == [3, 3, 4]
    assert [budget.due(i) for i in range(3)] == [2, 7, 12]


@pytest.mark.parametrize(
    'settings, error, words',
    [
        (dict(search=dict(stepz=3)), TypeError, r"search has no settings \['stepz'\]; there are"),
        (dict(synthesis=dict(seed=3)), TypeError, r"synthesis has no settings \['seed'\]"),
        (dict(rate=3), TypeError, r"GAPHook has no settings \['rate'\]; there are \['generator'"),
        (
            dict(injection=dict(mode='add')),
            ValueError,
            "injection mode must be one of .* got 'add'",
        ),
        (dict(search='fast'), TypeError, "search must be a dict of settings, got 'fast'"),
        (dict(injection=['mix']), TypeError, r"injection must be a dict .* got \['mix'\]"),
        (dict(rounds=0), ValueError, 'rounds and interval at least 1, got .* rounds=0'),
        (dict(budget=1, rounds=2), ValueError, 'budget=1 gives not one image to each of 2 rounds'),
        (dict(plateau=0), ValueError, 'plateau must be positive, or None, got 0'),
        (dict(search=dict(steps=-1)), ValueError, 'search steps must not be negative, got -1'),
        (dict(search=dict(grow=-1)), ValueError, 'search grow must not be negative, got -1'),
        (dict(synthesis=dict(attempts=0)), ValueError, 'synthesis attempts must be at least 1'),
    ],
)
def test_bad_settings(settings, error, words):
    with pytest.raises(error, match=words):
        GAPSettings.from_config(dict(generator={}) | settings)


def test_a_hook_without_a_generator():
    with pytest.raises(TypeError, match='GAPHook needs generator'):
        GAPSettings.from_config(dict(budget=3))


def test_none_and_empty_mean_the_default():
    nothing = dict(optim_wrapper=None, param_scheduler=None)
    settings = GAPSettings.from_config(dict(generator={}, search=nothing)).search
    assert settings == SearchSettings(optim_wrapper={}) == SearchSettings()
    assert settings.optim_wrapper['optimizer'] == dict(type='Adam', lr=1e-3)


def test_a_class_made_from_the_hook_has_its_own_say():
    class Own(GAPHook):
        def __init__(self, generator, note='', **settings):
            super().__init__(generator, **{'budget': 7, **settings})

    settings = settings_of(dict(type=Own, generator={}, note='mine', search=dict(steps=2)))
    assert (settings.budget, settings.search.steps) == (7, 2)


@pytest.mark.parametrize('base', [Feedback, Critic])
def test_a_class_with_an_old_name_is_refused(base):
    with pytest.raises(TypeError, match='Own.judges is called label_type now'):
        type('Own', (base,), dict(judges='depth'))


def test_restarts_leave_a_given_start_alone():
    assert SearchSettings().restarts == 2
    assert SearchSettings(init='in the forest').restarts == 0
    assert SearchSettings(init='in the forest', max_restarts=1).restarts == 1
    assert SearchSettings().identity()['max_restarts'] == 2


def test_an_old_name_goes_on_with_a_warning():
    with pytest.warns(FutureWarning, match='GAPHook: target= is called input= now'):
        settings = GAPSettings.from_config(dict(generator={}, target=dict(input_size=(4, 4))))
    assert settings.input == dict(input_size=(4, 4))


def test_the_ratio_of_older_configs_is_that_of_the_injection():
    with pytest.warns(FutureWarning, match=r'ratio=… is called injection=dict\(ratio=…\) now'):
        settings = GAPSettings.from_config(dict(generator={}, ratio=0.25))
    assert settings.injection == InjectionSettings(ratio=0.25)
