# SPDX-License-Identifier: Apache-2.0
"""The two text encoders of Stable Diffusion XL behind one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.prompts.prompt_encoder import PromptEncoder, check_widths, nearest_words
from mmgap.prompts.soft_prompt import SoftPrompt, draw_from_vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedModel


class PromptEncoderPair:
    """Encode soft prompts with both text encoders of Stable Diffusion XL.

    To everyone else it is a :class:`~mmgap.prompts.PromptEncoder`. An embedding of a prompt is one
    of the first encoder's joined with one of the second's. What comes out is one tensor ``(B,
    length + 1, width)``: the penultimate hidden states of both, joined along the features (arXiv
    2307.01952, section 2.1), and as the last row the second one's pooled embedding between zeros.
    So it is compared, chosen from and moved as any hidden states are, the pooled embedding counting
    as one token more; :meth:`arguments` takes it apart.

    Args:
        tokenizer: A ``CLIPTokenizer``.
        text_encoder: A ``CLIPTextModel``; it is used as it is, frozen.
        tokenizer_2: Another one with the same vocabulary.
        text_encoder_2: A ``CLIPTextModelWithProjection``, the same.

    Raises:
        ValueError: If the tokenizers differ in vocabulary or length, or the pooled embedding is
            wider than the second encoder.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: PreTrainedModel,
        tokenizer_2: CLIPTokenizer,
        text_encoder_2: PreTrainedModel,
    ) -> None:
        if tokenizer.get_vocab() != tokenizer_2.get_vocab():
            raise ValueError(
                'tokenizer and tokenizer_2 have different vocabularies, of '
                f'{len(tokenizer)} and {len(tokenizer_2)} tokens; a soft prompt for two text '
                'encoders needs one that both know'
            )
        if tokenizer.model_max_length != tokenizer_2.model_max_length:
            raise ValueError(
                f'tokenizer and tokenizer_2 take {tokenizer.model_max_length} and '
                f'{tokenizer_2.model_max_length} tokens; their hidden states cannot be joined'
            )
        self.first = _InnerEncoder(tokenizer, text_encoder)
        self.second = _InnerEncoder(tokenizer_2, text_encoder_2)
        self._pooled_width = text_encoder_2.config.projection_dim
        if self._pooled_width > self.second.width:
            raise ValueError(
                f'the pooled embedding of text_encoder_2 has width {self._pooled_width}, more than '
                f'the {self.second.width} of its hidden states; no Stable Diffusion XL has that'
            )

    @property
    def widths(self) -> tuple[int, int]:
        """Width of either encoder's token embeddings."""
        return self.first.width, self.second.width

    @property
    def width(self) -> int:
        """Width of a joined token embedding."""
        return sum(self.widths)

    @property
    def max_tokens(self) -> int:
        """How many tokens fit between the start and the end token."""
        return self.first.max_tokens

    def vocabulary(self) -> Tensor:
        """``(words, width)``: joined embeddings of all tokens that neither takes for special."""
        ids = self._ordinary_ids()
        return torch.cat([self.first.table()[ids], self.second.table()[ids]], dim=1)

    def nearest_words(self, prompt: SoftPrompt, count: int = 3) -> list[list[tuple[str, float]]]:
        """Words nearest to joined embeddings, see :meth:`PromptEncoder.nearest_words`."""
        ids, tokenizer = self._ordinary_ids(), self.first.tokenizer
        return nearest_words(prompt.embeddings, self.vocabulary(), ids, tokenizer, count)

    def _ordinary_ids(self) -> list[int]:
        return sorted(set(self.first.ordinary_ids()) & set(self.second.ordinary_ids()))

    def random_prompt(self, n: int, seed: int, id: str, **kwargs: Any) -> SoftPrompt:
        """A prompt of ``n`` draws from the vocabulary's Gaussian. ``kwargs`` go to SoftPrompt."""
        generator = torch.Generator().manual_seed(seed)
        drawn = draw_from_vocabulary(self.vocabulary(), n, generator)
        return SoftPrompt(drawn, id, widths=self.widths, **kwargs)

    def text_prompt(
        self, text: str, id: str, tokens: int | None = None, **kwargs: Any
    ) -> SoftPrompt:
        """A prompt that starts as the words of ``text``, see :meth:`PromptEncoder.text_prompt`.

        Raises:
            ValueError: As there, or if the two tokenizers split ``text`` differently.
        """
        counts = [len(encoder.token_ids(text)) for encoder in (self.first, self.second)]
        if counts[0] != counts[1]:
            raise ValueError(
                f'prompt {id!r}: the two tokenizers of the model split {text!r} into {counts[0]} '
                f'and {counts[1]} tokens; take other words or signs'
            )
        first, second = (e.text_prompt(text, id, tokens) for e in (self.first, self.second))
        joined = torch.cat([first.embeddings, second.embeddings], dim=1)
        return SoftPrompt(joined, id, widths=self.widths, **kwargs)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """``(len(texts), length + 1, width)``: sentences as both encoders read them.

        Raises:
            ValueError: If a sentence has more tokens than the encoders take; says what is cut.
        """
        return torch.cat([self.first.encode_text(texts), self.second.encode_text(texts)], dim=2)

    def encode(self, prompts: Sequence[SoftPrompt]) -> Tensor:
        """``(len(prompts), length + 1, width)``: soft prompts as both encoders read them.

        Gradient reaches both parts of their embeddings.

        Raises:
            ValueError: If a prompt has embeddings of other widths than the encoders or is too long.
        """
        check_widths(prompts, self.widths)
        halves = zip(*(p.embeddings.split(self.widths, dim=1) for p in prompts), strict=True)
        states = [
            encoder.encode_embeddings(prompts, half)
            for encoder, half in zip((self.first, self.second), halves, strict=True)
        ]
        return torch.cat(states, dim=2)

    def arguments(self, states: Tensor) -> dict[str, Tensor]:
        """Hidden states under the names that a diffusers pipeline knows them by.

        Args:
            states: ``(B, length + 1, width)``.

        Returns:
            ``prompt_embeds``: ``(B, length, width)``, ``pooled_prompt_embeds``: ``(B, pooled)``.
        """
        start = self.first.width
        pooled = states[:, -1, start : start + self._pooled_width]
        return dict(prompt_embeds=states[:, :-1], pooled_prompt_embeds=pooled)


class _InnerEncoder(PromptEncoder):
    """Either of the two: penultimate hidden states, and one row more for a pooled embedding."""

    def _hidden_states(self, ids: Tensor) -> Tensor:
        # No attention mask, whatever the config says: XL's pipelines give none.
        output = self.text_encoder(ids.to(self.text_encoder.device), output_hidden_states=True)
        states = output.hidden_states[-2]
        row = torch.zeros_like(states[:, 0])
        if hasattr(output, 'text_embeds'):
            row = F.pad(output.text_embeds, (0, self.width - output.text_embeds.shape[1]))
        return torch.cat([states, row[:, None]], dim=1)
