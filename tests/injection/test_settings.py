# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from mmgap.injection import InjectionSettings

PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(), [0.5] * 5),
        (dict(mode='replace'), [1.0] * 5),
        (dict(ratio=0.3), [0.3] * 5),
        (dict(mode='refit', ratio=0), [0.0] * 5),
        (dict(ratio=[[0, 1], [0.5, 0.2], [1, 0.2]]), [1.0, 0.6, 0.2, 0.2, 0.2]),
        (dict(mode='replace', ratio=[(0.25, 0.0), (0.75, 1.0)]), [0.0, 0.0, 0.5, 1.0, 1.0]),
        (dict(mode='staged'), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (dict(mode='staged', share=0.25, ratio=0.1), [1.0, 0.1, 0.1, 0.1, 0.1]),
        (dict(mode='staged', share=1.0), [1.0] * 4 + [0.0]),
        (dict(mode='staged', reverse=True), [0.0, 0.0, 1.0, 1.0, 1.0]),
        (dict(mode='staged', reverse=True, share=0.25, ratio=0.2), [0.2] * 3 + [1.0, 1.0]),
        (
            dict(mode='staged', share=0.5, ratio=[(0.5, 0.8), (1.0, 0.0)]),
            [1.0, 1.0, 0.8, 0.4, 0.0],
        ),
    ],
)
def test_ratio_over_the_training(settings, expected):
    made = InjectionSettings(**settings)
    assert [made.ratio_at(place) for place in PLACES] == pytest.approx(expected)


def test_a_mode_that_was_chosen():
    given = InjectionSettings(mode='auto', weight=2.0, steps=7, last_layer='head.fc.')
    chosen = given.in_mode('replace')
    assert chosen == replace(given, mode='replace') and given.mode == 'auto'
    assert (given.ratio_at(0), chosen.ratio_at(0)) == (0.5, 1.0)
    assert InjectionSettings(mode='auto', ratio=0.2).in_mode('replace').ratio_at(0) == 0.2


@pytest.mark.parametrize('label_type, reset, real', [('classes', True, 0.01), ('depth', False, 1)])
def test_what_depends_on_the_labels(label_type, reset, real):
    given = InjectionSettings(mode='refit', steps=7)
    made = given.for_labels(label_type)
    assert made == replace(given, reset=reset, real=real)
    assert made.for_labels('depth') == made.for_labels('classes') == made
    assert (given.reset, given.real) == (None, None)
    own = InjectionSettings(mode='refit', reset=not reset, real=0.0)
    assert own.for_labels(label_type) == own


def test_optimizer_of_a_refit():
    last, every = (InjectionSettings(layers=layers).refit_optimizer for layers in ('last', 'all'))
    assert last == dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-2))
    assert every['optimizer'] == dict(type='SGD', lr=2e-3, momentum=0.9)
    last['optimizer']['lr'] = 5  # a copy
    assert InjectionSettings().refit_optimizer['optimizer']['lr'] == 1e-2
    own = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0))
    assert InjectionSettings(optim_wrapper=own).refit_optimizer == own


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(mode='add'), r"mode must be one of \('mix', 'refit', .* got 'add'"),
        (dict(layers='first'), r"layers must be one of \('last', 'all'\), got 'first'"),
        (dict(steps=0), 'steps must be at least 1, got 0'),
        (dict(batch_size=0), 'batch_size must be at least 1, got 0'),
        (dict(weight=0), 'weight must be positive, got 0'),
        (dict(weight=float('nan')), 'weight must be positive, got nan'),
        (dict(real=-0.1), 'real must not be negative, got -0.1'),
        (dict(share=0), r'share must be in \(0, 1\], got 0'),
        (dict(share=1.1), r'share must be in \(0, 1\], got 1.1'),
        (dict(ratio=1.5), r'ratio must be in \[0, 1\], .* got 1.5'),
        (dict(ratio=float('nan')), r'ratio must be in \[0, 1\], .* got nan'),
        (dict(ratio=[]), r'a number or pairs of \(progress, ratio\), got \[\]'),
        (dict(ratio=[(0, 0.5, 1)]), r'a number or pairs of \(progress, ratio\), got'),
        (dict(ratio=[(0.5, 0), (0.2, 1)]), 'its progress too and rising, got'),
        (dict(ratio=[(0, 0), (2, 1)]), 'its progress too and rising, got'),
        (dict(ratio=[(0, 0), (1, -1)]), 'its progress too and rising, got'),
    ],
)
def test_out_of_range(wrong, words):
    with pytest.raises(ValueError, match=f'^injection .*{words}'):
        InjectionSettings(**wrong)


def test_what_a_mode_does_not_use_does_not_count():
    assert InjectionSettings(steps=3).counted == InjectionSettings(steps=9, share=0.1).counted
    refit = InjectionSettings(mode='refit', steps=3).counted
    assert refit != InjectionSettings(mode='refit', steps=9).counted
    assert refit == InjectionSettings(mode='refit', steps=3, share=0.1).counted
