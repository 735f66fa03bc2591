# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgap.feedback.clip_model import ClipModel
from mmgap.generators.gradient import GradientPolicy
from mmgap.registry import DATASETS, HOOKS, METRICS, TASK_UTILS, TRANSFORMS
from mmgap.search import SearchSettings
from mmgap.synthesis.selection import Keep
from mmgap.targets import TargetModel, build_target
from mmgap.typed import check_types, checked, fits, hints_of, parameters_of


@pytest.mark.parametrize(
    'hint, right, wrong',
    [
        (int, [3, np.int64(3)], [3.0, True, '3', None]),
        (float, [3, 0.5, np.float32(1)], [True, '0.5', None]),
        (bool, [True], [1, 'yes']),
        (str | None, ['a', None], [1, ['a']]),
        (int | Sequence[int], [3, [1, 2], (1,), []], ['3', [1.5], ['a']]),
        (tuple[int, int] | None, [[8, 8], None], ['8x8', 8, [8], [8, 8, 8]]),
        (dict[str, Any], [{}, dict(a=1)], [[], 'a']),
        (Mapping[str, Any] | bool, [{}, False], [0, None]),
        (Keep | None, [Keep(), dict(by='loss'), None], ['loss']),
        (Any, [1, None, 'a'], []),
    ],
)
def test_fits(hint, right, wrong):
    assert all(fits(value, hint) for value in right)
    assert not any(fits(value, hint) for value in wrong)


@pytest.mark.parametrize(
    'hint, value, typed',
    [
        (int, 1e3, 1000),
        (int | None, np.int64(3), 3),
        (float, np.float32(0.5), 0.5),
        (float, 2.0, 2.0),
        (bool, np.bool_(True), True),
        (str | Sequence[str], Path('a.txt'), 'a.txt'),
        (str | Sequence[str], (Path('a'), 'b'), ('a', 'b')),
        (int | Sequence[int], [np.int64(3), 4.0], [3, 4]),
        (int | Sequence[int], np.array([3, 4]), [3, 4]),
        (float | Sequence[Sequence[float]], ((0, np.float32(1)),), ((0, 1.0),)),
        (Any, np.float32(1), np.float32(1)),
    ],
)
def test_what_a_config_says_becomes_what_the_code_knows(hint, value, typed):
    found = check_types(dict(a=value), dict(a=hint), 'it')['a']
    assert found == typed and type(found) is type(typed)


@pytest.mark.parametrize('hint, value', [(int, 2.5), (int, '3'), (float, np.True_), (str, 3)])
def test_what_means_something_else_is_refused(hint, value):
    with pytest.raises(TypeError, match='it a must be'):
        check_types(dict(a=value), dict(a=hint), 'it')


def test_messages_name_setting_type_and_value():
    words = "search tokens must be a whole number or a list of whole numbers, got '5'"
    with pytest.raises(TypeError, match=words):
        check_types(dict(tokens='5'), hints_of(SearchSettings), 'search')


@pytest.mark.parametrize(
    'config, kind, words',
    [
        (dict(type='mmgap.AdversarialLos'), KeyError, 'near it are mmgap.AdversarialLoss'),
        (
            dict(type='mmgap.AdversarialLoss', weigth=1.0),
            TypeError,
            r"no settings \['weigth'\]",
        ),
        (dict(type='mmgap.AdversarialLoss', start='late'), TypeError, "start must be a whole .*'l"),
        (
            dict(type='mmgap.InpaintingGenerator', model='x', guidance_scale='1'),
            TypeError,
            'guid',
        ),
        (
            dict(type='mmgap.InpaintingGenerator', model='x', size=[8]),
            TypeError,
            r'size must be a whole number or a list of 2 whole numbers or None, got \[8\]',
        ),
        (dict(type='mmgap.ModelCritic', config='a.py'), TypeError, "ModelCritic: .*'checkpoint'"),
    ],
)
def test_parts_that_cannot_be_built(config, kind, words):
    with pytest.raises(kind) as caught:
        TASK_UTILS.build(config)
    assert re.search(words, str(caught.value))


def test_parts_may_be_told_what_their_docs_say(tmp_path):
    (tmp_path / 'texts.txt').write_text('fog\n')
    for path in (tmp_path / 'texts.txt', str(tmp_path / 'texts.txt')):
        term = TASK_UTILS.build(dict(type='mmgap.TextGuidance', descriptions=path, end=1e3))
        assert (term.descriptions, term.end) == (['fog'], 1000)
    with pytest.warns(FutureWarning, match='AdversarialLoss: target= is called target_class= now'):
        term = TASK_UTILS.build(dict(type='mmgap.AdversarialLoss', mode='targeted', target=1))
    assert term.target_class == 1
    for kind in ('ModelCritic', 'DepthCritic'):
        own = dict(config=Path('a.py'), checkpoint='a.pth', target=dict(input_size=(8, 8)))
        with pytest.warns(FutureWarning, match=f'{kind}: target= is called input= now'):
            critic = TASK_UTILS.build(dict(type=f'mmgap.{kind}', **own))
        assert (critic.input, critic.config) == (dict(input_size=(8, 8)), 'a.py')


def test_settings_within_settings():
    sizes = ([np.int64(8), 8], (8, 8.0), None)
    found = [checked(TargetModel, dict(input_size=size), None)['input_size'] for size in sizes]
    assert found == [[8, 8], (8, 8), None]
    assert build_target(None, {}, dict(input_size=[8, 8])).input_size == [8, 8]
    with pytest.raises(TypeError, match='TargetModel input_size must be a list of 2 whole .*224'):
        build_target(None, {}, dict(input_size=224))
    with pytest.raises(TypeError, match=r"GradientPolicy has no settings \['mod'\]; there are"):
        checked(GradientPolicy, dict(mod='last_k'))
    with pytest.raises(TypeError, match="ClipModel: missing a required argument: 'model'"):
        checked(ClipModel, {})


def test_what_a_constructor_needs_may_be_set():
    """Also where a class inherits it, as DepthCritic does."""
    assert TASK_UTILS.get('DepthCritic')
    for kind in TASK_UTILS.module_dict.values():
        taken = inspect.signature(kind).parameters.values()
        names = {one.name for one in taken if one.kind is not one.VAR_KEYWORD}
        assert names <= parameters_of(kind)[0].keys(), kind


@pytest.mark.parametrize(
    'registry, config, words',
    [
        (HOOKS, dict(type='InjectionHook', budget='9'), 'InjectionHook budget must be a whole'),
        (HOOKS, dict(type='InjectionHook', injection='mix'), "must be a dict or None, got 'mix'"),
        (DATASETS, dict(type='SyntheticMixDataset', dataset={}, ratio='half'), "ber, got 'half'"),
        (DATASETS, dict(type='SyntheticDataset', pool=None), 'pool must be text, got None'),
        (DATASETS, dict(type='MaskedFolders', data_root='x', classes='a.txt'), 'list of texts or'),
        (DATASETS, dict(type='Waterbirds', data_root=3, split='train'), 'data_root must be text'),
        (TRANSFORMS, dict(type='AmplitudeMix', images='train'), "a dict, got 'train'"),
        (TRANSFORMS, dict(type='LoadDepth', depth_rescale_factor='1e-3'), "number, got '1e-3'"),
        (METRICS, dict(type='GroupDepth', max_depth_eval='10'), "number, got '10'"),
    ],
)
def test_what_mmengine_builds_checks_itself(registry, config, words):
    with pytest.raises(TypeError, match=words):
        registry.build(dict(config, type=f'mmgap.{config["type"]}'))  # whatever the scope is


def test_arguments_in_their_order_are_checked_too():
    assert DATASETS.get('mmgap.SyntheticDataset')('pool', 1e3, lazy_init=True).budget == 1000
    with pytest.raises(TypeError, match='SyntheticDataset budget must be a whole number or None'):
        DATASETS.get('mmgap.SyntheticDataset')('pool', '9', lazy_init=True)
    with pytest.raises(TypeError, match='positional arguments'):
        DATASETS.get('mmgap.SyntheticDataset')('pool', 9, 'more')
