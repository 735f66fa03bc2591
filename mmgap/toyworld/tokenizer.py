# SPDX-License-Identifier: Apache-2.0
"""The word-level tokenizer of the tiny Stable Diffusion and the tiny CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmgap.toyworld.vocabulary import words

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT_LENGTH = 32
BOS, EOS, UNKNOWN = '<|startoftext|>', '<|endoftext|>', '<|unknown|>'
# EOS must not have id 2: `CLIPTextModel` then pools at the highest token id instead, where a
# placeholder of a soft prompt would win.
SPECIAL = (BOS, EOS, UNKNOWN)


def build_tokenizer() -> CLIPTokenizer:
    """Makes an ordinary ``CLIPTokenizer`` whose tokens are the words of the toy world.

    The byte-pair model inside knows no pairs; words are added tokens, matched whole. So a word
    that the world does not have becomes one ``<|unknown|>`` per character, and there are no
    fragments of words among the embeddings.
    """
    from transformers import AddedToken, CLIPTokenizer

    tokenizer = CLIPTokenizer(
        vocab={token: k for k, token in enumerate(SPECIAL)},
        merges=[],
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.add_tokens(
        [
            AddedToken(word, single_word=word != ',', normalized=True, special=False)
            for word in words()
        ]
    )
    return tokenizer
