# SPDX-License-Identifier: Apache-2.0
"""Soft prompts: what they are, how text encoders read them, how they are kept."""

from mmgap.prompts.prompt_bank import PromptBank, load_prompt, load_prompts
from mmgap.prompts.prompt_encoder import PromptEncoder
from mmgap.prompts.prompt_encoder_pair import PromptEncoderPair
from mmgap.prompts.soft_prompt import SoftPrompt, draw_from_vocabulary, ids_of

__all__ = [
    'PromptBank',
    'PromptEncoder',
    'PromptEncoderPair',
    'SoftPrompt',
    'draw_from_vocabulary',
    'ids_of',
    'load_prompt',
    'load_prompts',
]
