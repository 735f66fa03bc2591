# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mmgap.loop import GAPSettings
from mmgap.loop.method import describe_method

ATTACK = dict(type='mmgap.AdversarialLoss', mode='flip')
TEXT = dict(type='mmgap.TextGuidance', descriptions=['a bird at night'], weight=5.0)
DEPTH = dict(type='mmgap.DepthAdversarialLoss', loss='ssi', weight=0.05)
INVERSION = dict(type='mmgap.InversionGuidance', images='FOLDER')


@pytest.mark.parametrize(
    'feedback, search, text',
    [
        ([ATTACK], {}, 'AP: adversarial prompts (AdversarialLoss flip)'),
        (
            [dict(ATTACK, weight=0.05), TEXT],
            {},
            'GAP: adversarial prompts (AdversarialLoss flip, weight 0.05) guided by TextGuidance '
            '(weight 5.0)',
        ),
        (
            [TEXT, INVERSION],
            {},
            'GP: prompts guided by TextGuidance (weight 5.0), InversionGuidance (weight 1.0)',
        ),
        ([DEPTH], {}, 'AP: adversarial prompts (DepthAdversarialLoss ssi, weight 0.05)'),
        # A term that is switched off is none.
        ([ATTACK, dict(TEXT, weight=0.0)], {}, 'AP: adversarial prompts (AdversarialLoss flip)'),
        ([], {}, 'a search without feedback'),
        ([ATTACK], dict(steps=0), 'random prompts, no search'),
        ([TEXT], dict(steps=0, init=['vocabulary']), 'random prompts, no search'),
        ([ATTACK], dict(steps=0, init=['in fog', 'at night']), 'prompts as given, no search'),
    ],
)
def test_feedback_and_search_say_which_method_it_is(feedback, search, text):
    settings = GAPSettings.from_config(dict(generator={}, feedback=feedback, search=search))
    assert describe_method(settings) == text
