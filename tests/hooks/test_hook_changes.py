# SPDX-License-Identifier: Apache-2.0
"""``gap_hook``: a config changes settings of the GAPHook that it inherits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmgap.configs import change_hook, finish_config, gap_hooks
from mmgap.hooks import GAPHook, InjectionHook
from mmgap.injection import InjectionSettings
from mmgap.loop import Loop
from mmgap.loop.parts import settings_of
from mmgap.prompts import load_prompts
from tests.support.miniature import draw_waterbirds
from tests.support.small_config import small_config

NEW = Path(__file__).parents[1] / 'support' / 'new_style_gap.py'
HOOK = dict(
    type='mmgap.GAPHook',
    generator=dict(type='mmgap.InpaintingGenerator', model='M', size=64),
    feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
    search=dict(steps=20, tokens=5, optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1))),
    critic=False,
    budget=400,
)


def config(**keys) -> Config:
    return Config(dict(custom_hooks=[dict(type='EMAHook'), copy.deepcopy(HOOK)], **keys))


@pytest.mark.parametrize(
    'changes, place, value',
    [
        (dict(search=dict(steps=5)), 'search', dict(HOOK['search'], steps=5)),
        (dict(search=dict(_delete_=True, steps=5)), 'search', dict(steps=5)),
        (
            dict(search=dict(optim_wrapper=dict(optimizer=dict(lr=0.2)))),
            'search',
            dict(HOOK['search'], optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.2))),
        ),
        (dict(feedback=[]), 'feedback', []),
        (
            dict(feedback={'0': dict(weight=0.5)}),
            'feedback',
            [dict(type='mmgap.AdversarialLoss', mode='flip', weight=0.5)],
        ),
        (dict(budget=3), 'budget', 3),
        # MMEngine leaves this word where there is nothing to delete.
        (dict(synthesis=dict(_delete_=True, aim=0.5)), 'synthesis', dict(aim=0.5)),
    ],
)
def test_changes_are_merged_into_the_hook(changes, place, value):
    before = copy.deepcopy(HOOK)
    changed = change_hook(HOOK, changes)
    assert changed[place] == value
    assert {k: v for k, v in changed.items() if k != place} == {
        k: v for k, v in HOOK.items() if k != place
    }
    assert before == HOOK
    whole = config(gap_hook=copy.deepcopy(changes))
    (hook,) = gap_hooks(whole)
    assert hook == changed and whole.custom_hooks[1] is hook and 'gap_hook' not in whole
    assert gap_hooks(whole) == [changed], 'they are merged once'


def test_a_config_without_it_stays_as_it_is():
    whole = config(gap_hook=None)
    finish_config(whole)
    assert whole.to_dict() == config().to_dict() and gap_hooks(whole) == [HOOK]
    finish_config(Config(dict(model={})))


@pytest.mark.parametrize(
    'changes, error, words',
    [
        (5, TypeError, 'gap_hook must be a dict of settings of GAPHook, got 5'),
        (dict(type='EMAHook'), ValueError, r"a hook that is there, and not its \['type'\]"),
        (dict(priority=3), ValueError, r"not its \['priority'\]"),
        (dict(_delete_=True, budget=3), ValueError, r"not its \['_delete_'\]"),
        (dict(critic=dict(type='mmgap.ClipCritic')), TypeError, 'does not fit .* `_delete_=True`'),
        (dict(feedback={'3': dict(weight=1)}), ValueError, 'does not fit .* Index 3 exceeds'),
        (dict(feedback=dict(weight=1)), TypeError, 'gap_hook does not fit the GAPHook'),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, words):
    with pytest.raises(error, match=words):
        gap_hooks(config(gap_hook=changes))


@pytest.mark.parametrize('hooks', [[], [HOOK, HOOK], [dict(type='mmgap.InjectionHook')]])
def test_it_needs_one_hook(hooks):
    whole = Config(dict(custom_hooks=hooks, gap_hook=dict(budget=3)))
    count = hooks.count(HOOK)
    for read in (finish_config, Loop.from_config):
        with pytest.raises(
            ValueError, match=f'which has {count}; add or take out some, or set gap'
        ):
            read(whole)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(serach={}), r"GAPHook has no settings \['serach'\]; there are \['generator'"),
        (dict(search=dict(step=5)), r"search has no settings \['step'\]; there are"),
    ],
)
def test_unknown_settings_are_refused(changes, words):
    (changed,) = gap_hooks(config(gap_hook=changes))
    with pytest.raises(TypeError, match=words):
        settings_of(changed)
    hook = GAPHook(**{name: value for name, value in HOOK.items() if name != 'type'})
    with pytest.raises(TypeError, match=words):
        hook.before_run(run(hook, gap_hook=changes))


def run(*hooks: GAPHook, **keys) -> SimpleNamespace:
    """As much of a Runner as is asked before anything is built."""
    return SimpleNamespace(cfg=config(**keys), hooks=list(hooks), work_dir='nowhere')


def test_the_hook_takes_them_from_the_run():
    """With MMPretrain's own tools, which know nothing of them."""
    own = {name: value for name, value in HOOK.items() if name != 'type'}
    changes = dict(search=dict(steps=5), injection=dict(mode='refit'), seed=7)
    hook = GAPHook(**own)
    hook.before_run(run(hook, gap_hook=changes))
    (changed,) = gap_hooks(config(gap_hook=changes))
    assert hook.settings == settings_of(changed) != settings_of(HOOK)
    assert hook.asked == hook.injection == InjectionSettings(mode='refit')
    assert hook.given_seed == 7 and hook.settings.search.steps == 5
    for keys in ({}, dict(gap_hook=None)):
        plain = GAPHook(**own)
        plain.before_run(run(plain, **keys))
        assert plain.settings == settings_of(HOOK)
    for other in (GAPHook(**own), InjectionHook()):
        both = f'it has 2 .GAPHook, {type(other).__name__}., which would write to one folder'
        with pytest.raises(ValueError, match=both):
            hook.before_run(run(hook, other, gap_hook=changes))
    with pytest.warns(FutureWarning, match='it, or one that it inherits from, is called new now'):
        hook.before_run(run(hook, renamed='new'))


def test_children_of_children(tmp_path):
    config().dump(tmp_path / 'base.py')
    head = "_base_ = ['{}.py']\n"
    steps = 'gap_hook = dict(search=dict(steps=5, tokens=2), budget=50)\n'
    (tmp_path / 'child.py').write_text(head.format('base') + steps)
    again = 'gap_hook = dict(search=dict(tokens=3))\n'
    (tmp_path / 'grandchild.py').write_text(head.format('child') + again)
    (hook,) = gap_hooks(Config.fromfile(tmp_path / 'grandchild.py'))
    assert hook == dict(HOOK, search=dict(HOOK['search'], steps=5, tokens=3), budget=50)
    (tmp_path / 'none.py').write_text(head.format('child') + 'gap_hook = None\n')
    assert gap_hooks(Config.fromfile(tmp_path / 'none.py')) == [HOOK]


def test_configs_of_the_new_style():
    whole = Config.fromfile(NEW)
    (own,) = gap_hooks(whole)
    whole.gap_hook = dict(search=dict(steps=own.search.steps + 2), budget=7)
    (hook,) = gap_hooks(whole)
    settings = settings_of(hook)
    assert hook.type is GAPHook and settings.budget == 7
    assert (
        settings.search.steps == settings_of(Config.fromfile(NEW).custom_hooks[0]).search.steps + 2
    )


def test_a_run(tmp_path, tiny_sd):
    """The log, ``summary.json`` and what is left are of the changed settings."""
    data = draw_waterbirds(tmp_path / 'data', per_group=2)
    whole = small_config(data, tiny_sd, tmp_path / 'work')
    whole.train_cfg.max_epochs = 2
    whole.gap_hook = dict(search=dict(steps=0, prompts_per_class=2, holdout=0), rounds=1, budget=4)
    runner = Runner.from_cfg(whole)
    runner.train()
    gap = tmp_path / 'work' / 'gap'
    summary = json.loads((gap / 'summary.json').read_text())
    assert summary['method'] == 'random prompts, no search' and summary['images'] == 4
    assert len(load_prompts(gap / 'prompts')) == 4
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert log.read_text().count('[gap] random prompts, no search\n') == 1
