# SPDX-License-Identifier: Apache-2.0
"""Prompt search: generator and feedback, whose only parameters are the prompts."""

from mmgap.search.aim import allocation, round_robin
from mmgap.search.alignment import AlignmentAlarm
from mmgap.search.evaluation import PromptEvaluator
from mmgap.search.initial_prompts import initial_prompts
from mmgap.search.progress import FoundPrompt, NonFiniteLossError
from mmgap.search.prompt_search import PromptSearch, check_ids

__all__ = [
    'AlignmentAlarm',
    'FoundPrompt',
    'PromptEvaluator',
    'NonFiniteLossError',
    'PromptSearch',
    'check_ids',
    'round_robin',
    'initial_prompts',
    'allocation',
]
