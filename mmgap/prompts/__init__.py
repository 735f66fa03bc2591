# SPDX-License-Identifier: Apache-2.0
"""Soft prompts: what they are, how a text encoder reads them, how they are kept."""

from mmgap.prompts.prompt_bank import PromptBank, load_prompt, load_prompts
from mmgap.prompts.prompt_encoder import PromptEncoder
from mmgap.prompts.soft_prompt import SoftPrompt, draw_from_vocabulary

__all__ = [
    'PromptBank',
    'PromptEncoder',
    'SoftPrompt',
    'draw_from_vocabulary',
    'load_prompt',
    'load_prompts',
]
