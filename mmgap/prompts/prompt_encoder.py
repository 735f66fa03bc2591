# SPDX-License-Identifier: Apache-2.0
"""From soft prompts and sentences to hidden states of a frozen CLIP text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgap.prompts.soft_prompt import SoftPrompt, draw_from_vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedModel


class PromptEncoder:
    """Encode soft prompts with a pipeline's tokenizer and text encoder.

    The embeddings are put in place of placeholder tokens while the encoder looks its tokens up.
    The vocabulary table is neither copied nor changed.

    Args:
        tokenizer: A ``CLIPTokenizer``.
        text_encoder: A ``CLIPTextModel``; it is used as it is, frozen.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: PreTrainedModel) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        # Some encoders pool at the highest token id: the lowest ordinary one can never win there.
        self._stand_in = min(self.ordinary_ids())

    @property
    def width(self) -> int:
        """Width of a token embedding."""
        return self._embedding.embedding_dim

    @property
    def max_tokens(self) -> int:
        """How many tokens fit between the start and the end token."""
        return self.tokenizer.model_max_length - 2

    def ordinary_ids(self) -> list[int]:
        """Ids of all tokens but the special ones."""
        special = set(self.tokenizer.all_special_ids)
        return [i for i in range(len(self.tokenizer)) if i not in special]

    def vocabulary(self) -> Tensor:
        """``(words, width)``: the embeddings of all tokens but the special ones."""
        return self.table()[self.ordinary_ids()]

    def table(self) -> Tensor:
        """``(tokens, width)``: the embeddings of all tokens, by their ids."""
        return self._embedding.weight.detach()

    def random_prompt(self, n: int, seed: int, id: str, **kwargs: Any) -> SoftPrompt:
        """A prompt of ``n`` draws from the vocabulary's Gaussian. ``kwargs`` go to SoftPrompt."""
        generator = torch.Generator().manual_seed(seed)
        return SoftPrompt(draw_from_vocabulary(self.vocabulary(), n, generator), id, **kwargs)

    def text_prompt(
        self, text: str, id: str, tokens: int | None = None, **kwargs: Any
    ) -> SoftPrompt:
        """A prompt that starts as the words of ``text``.

        Args:
            text: One or several words.
            id: Name of the prompt.
            tokens: Number of embeddings; the words are repeated in turn to fill it. By default as
                many as ``text`` has tokens, and then the prompt encodes exactly as the text does.
            **kwargs: Passed to :class:`SoftPrompt`.

        Raises:
            ValueError: If ``text`` has no tokens, more than ``tokens`` or than the encoder takes,
                or words that the tokenizer lacks.
        """
        ids = self.token_ids(text)
        if not ids:
            raise ValueError(f'prompt {id!r}: the text {text!r} has no tokens')
        if self.tokenizer.unk_token_id in ids:
            raise ValueError(f'prompt {id!r}: {text!r} has words that the tokenizer does not know')
        if len(ids) > self.max_tokens:
            kept = self.tokenizer.decode(ids[: self.max_tokens])
            raise ValueError(
                f'prompt {id!r}: {text!r} has {len(ids)} tokens, the text encoder takes '
                f'{self.max_tokens}; it would be cut after {kept!r}'
            )
        if tokens is not None and len(ids) > tokens:
            raise ValueError(
                f'prompt {id!r}: {text!r} has {len(ids)} tokens, tokens={tokens} would cut it'
            )
        ids = [ids[i % len(ids)] for i in range(tokens or len(ids))]
        return SoftPrompt(self.table()[ids], id, **kwargs)

    def nearest_words(self, prompt: SoftPrompt, count: int = 3) -> list[list[tuple[str, float]]]:
        """The words of the vocabulary that a prompt's embeddings are nearest to.

        Args:
            prompt: The prompt.
            count: Words for each of its tokens.

        Returns:
            For each token the words and their cosine similarities, the nearest first.
        """
        ids = self.ordinary_ids()
        return nearest_words(prompt.embeddings, self.vocabulary(), ids, self.tokenizer, count)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of sentences.

        Args:
            texts: Sentences; the empty one is allowed.

        Returns:
            ``(len(texts), length, width)``, the encoder's ``last_hidden_state``.

        Raises:
            ValueError: If a sentence has more tokens than the encoder takes; says what is cut.
        """
        rows = [self._framed(text, self.token_ids(text)) for text in texts]
        return self._hidden_states(torch.tensor(rows))

    def encode(self, prompts: Sequence[SoftPrompt]) -> Tensor:
        """Hidden states of soft prompts, with gradient to their embeddings.

        Args:
            prompts: Soft prompts, also of different lengths.

        Returns:
            ``(len(prompts), length, width)``, the encoder's ``last_hidden_state``.

        Raises:
            ValueError: If a prompt has another embedding width than the encoder or is too long.
        """
        check_widths(prompts, (self.width,))
        return self.encode_embeddings(prompts, [prompt.embeddings for prompt in prompts])

    def encode_embeddings(
        self, prompts: Sequence[SoftPrompt], embeddings: Sequence[Tensor]
    ) -> Tensor:
        """As :meth:`encode`, with ``(n, width)`` embeddings in the place of the prompts' own."""
        rows, places = [], []
        for prompt, own in zip(prompts, embeddings, strict=True):
            before, after = (self.token_ids(part) for part in prompt.template.split('{}'))
            joiner = self.token_ids(prompt.joiner)
            ids, marks = list(before), [False] * len(before)
            for i in range(len(own)):
                between = joiner if i else []
                ids += [*between, self._stand_in]
                marks += [False] * len(between) + [True]
            rows.append(self._framed(prompt.id, ids + after))
            marks = [False, *marks]
            places.append(marks + [False] * (len(rows[-1]) - len(marks)))
        device = self.text_encoder.device
        # From lists: the places of a mask on a GPU would have to be waited for.
        where = torch.tensor(
            [(row, i) for row, marks in enumerate(places) for i, mark in enumerate(marks) if mark]
        )
        with self._spliced(where.to(device), torch.cat([own.to(device) for own in embeddings])):
            return self._hidden_states(torch.tensor(rows))

    @staticmethod
    def arguments(states: Tensor) -> dict[str, Tensor]:
        """Hidden states under the names that a diffusers pipeline knows them by."""
        return dict(prompt_embeds=states)

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens, without start and end."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []

    @property
    def _embedding(self) -> nn.Embedding:
        """Where the encoder looks its tokens up."""
        return cast(nn.Embedding, self.text_encoder.get_input_embeddings())

    def _framed(self, name: str, ids: list[int]) -> list[int]:
        """Start token, ``ids``, end token, padding up to the encoder's length."""
        if len(ids) > self.max_tokens:
            raise ValueError(
                f'{name!r} has {len(ids)} tokens, the text encoder takes {self.max_tokens}; '
                f'it would be cut after {self.tokenizer.decode(ids[: self.max_tokens])!r}'
            )
        framed = [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]
        padding = self.tokenizer.model_max_length - len(framed)
        return framed + [self.tokenizer.pad_token_id] * padding

    def _hidden_states(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.text_encoder.device)
        attention_mask = None
        if getattr(self.text_encoder.config, 'use_attention_mask', False):
            lengths = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
            attention_mask = (torch.arange(ids.shape[1], device=ids.device) <= lengths).long()
        return self.text_encoder(ids, attention_mask=attention_mask)[0]

    @contextmanager
    def _spliced(self, where: Tensor, embeddings: Tensor) -> Iterator[None]:
        """While open, token look-ups return ``embeddings`` at the ``(n, 2)`` places ``where``."""

        def splice(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return output.index_put(where.unbind(dim=1), embeddings.to(output.dtype))

        handle = self._embedding.register_forward_hook(splice)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def nearest_words(
    embeddings: Tensor, table: Tensor, ids: Sequence[int], tokenizer: CLIPTokenizer, count: int
) -> list[list[tuple[str, float]]]:
    """The words that some embeddings are nearest to, by cosine similarity.

    Args:
        embeddings: ``(n, width)``.
        table: ``(words, width)``, the embeddings of the words.
        ids: Token id of each row of ``table``.
        tokenizer: Knows what they say.
        count: Words for each embedding.

    Returns:
        For each embedding its words with their similarities, the nearest first.
    """
    unit = F.normalize(table.float(), dim=1)
    similar = F.normalize(embeddings.detach().to(unit), dim=1) @ unit.T
    values, places = similar.topk(min(count, len(ids)), dim=1)
    words = [[_word(tokenizer, ids[i]) for i in row] for row in places.tolist()]
    return [
        [(word, round(value, 4)) for word, value in zip(*pair, strict=True)]
        for pair in zip(words, values.tolist(), strict=True)
    ]


def _word(tokenizer: CLIPTokenizer, id: int) -> str:
    word = str(tokenizer.decode([id])).strip()
    # A part of a character decodes to nothing that can be read.
    return str(tokenizer.convert_ids_to_tokens(id)) if word in ('', '\ufffd') else word


def check_widths(prompts: Sequence[SoftPrompt], widths: tuple[int, ...]) -> None:
    """Whether prompts were made for a text encoder, or two of them, of these widths.

    Raises:
        ValueError: If one was not.
    """
    for prompt in prompts:
        if prompt.widths != widths:
            theirs, ours = (' + '.join(map(str, each)) for each in (prompt.widths, widths))
            raise ValueError(
                f'prompt {prompt.id!r} has embeddings of width {theirs}, the text encoder has '
                f'{ours}: it was made for another model'
            )
