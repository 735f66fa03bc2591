# SPDX-License-Identifier: Apache-2.0
"""Prompt search: generator and feedback, whose only parameters are the prompts."""

from mmgap.search.aim import aimed_starts, allocation, failure_rates, round_robin
from mmgap.search.alignment import AlignmentAlarm
from mmgap.search.checkpoint import SearchCurve, read_curves
from mmgap.search.evaluation import PromptEvaluator, SourceSplit
from mmgap.search.initial_prompts import initial_prompts
from mmgap.search.progress import FoundPrompt, NonFiniteLossError
from mmgap.search.prompt_search import PromptSearch, check_ids
from mmgap.search.settings import SearchSettings

__all__ = [
    'AlignmentAlarm',
    'FoundPrompt',
    'NonFiniteLossError',
    'PromptEvaluator',
    'PromptSearch',
    'SearchCurve',
    'SearchSettings',
    'SourceSplit',
    'aimed_starts',
    'allocation',
    'check_ids',
    'failure_rates',
    'initial_prompts',
    'read_curves',
    'round_robin',
]
