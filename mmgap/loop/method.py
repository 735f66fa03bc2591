# SPDX-License-Identifier: Apache-2.0
"""Which method a loop runs: AP, GP, GAP or none that searches."""

from __future__ import annotations

from mmgap.feedback import Feedback
from mmgap.loop.settings import GAPSettings
from mmgap.registry import TASK_UTILS
from mmgap.search.settings import VOCABULARY


def describe_method(settings: GAPSettings) -> str:
    """Name the method that settings are of, with the terms that make it one.

    Returns:
        ``'AP: …'`` for an attack alone, ``'GP: …'`` for guidance alone, ``'GAP: …'`` for both;
        without a search, where prompts come from.
    """
    if settings.search.steps == 0:
        drawn = set(settings.search.starts) == {VOCABULARY}
        return 'random prompts, no search' if drawn else 'prompts as given, no search'
    terms = [TASK_UTILS.build(dict(config)) for config in settings.feedback]
    attack = ', '.join(_about(term) for term in terms if term.weight and term.needs == 'target')
    guidance = ', '.join(_about(term) for term in terms if term.weight and term.needs != 'target')
    if attack and guidance:
        return f'GAP: adversarial prompts ({attack}) guided by {guidance}'
    if attack:
        return f'AP: adversarial prompts ({attack})'
    return f'GP: prompts guided by {guidance}' if guidance else 'a search without feedback'


def _about(term: Feedback) -> str:
    """``'AdversarialLoss flip, weight 0.05'`` in an attack, ``'TextGuidance (weight 5.0)'``."""
    name = type(term).__name__
    if term.needs != 'target':
        return f'{name} (weight {term.weight})'
    kind = getattr(term, 'mode', None) or getattr(term, 'loss', None)
    return ' '.join([name, *([kind] if isinstance(kind, str) else [])]) + (
        f', weight {term.weight}' if term.weight != 1 else ''
    )
