# SPDX-License-Identifier: Apache-2.0
"""Prompt search: generator and feedback, whose only parameters are the prompts."""

from mmgap.search.aim import in_turn, shares
from mmgap.search.alignment import AlignmentAlarm
from mmgap.search.initial_prompts import initial_prompts
from mmgap.search.judgement import Judge
from mmgap.search.prompt_search import PromptSearch, check_ids
from mmgap.search.state import FoundPrompt, NonFiniteLossError

__all__ = [
    'AlignmentAlarm',
    'FoundPrompt',
    'Judge',
    'NonFiniteLossError',
    'PromptSearch',
    'check_ids',
    'in_turn',
    'initial_prompts',
    'shares',
]
