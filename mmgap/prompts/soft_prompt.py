# SPDX-License-Identifier: Apache-2.0
"""Soft prompts: learned token embeddings, and how they start."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LONGEST = 200  # bytes of an id; a file's name may have 255


class SoftPrompt(nn.Module):
    """``n`` token embeddings, the only thing that a prompt search changes.

    A sentence is a soft prompt too, whose embeddings are those of its words: then every image in a
    pool has a prompt of one kind.

    Args:
        embeddings: ``(n, width)``, the token embeddings to start from, in the text encoder's space;
            where there are two text encoders, each row joins an embedding of either. Kept in
            float32 or float64 whatever the encoder's dtype: half precision has no room for an
            optimiser's small steps.
        id: Name of the prompt; its file is ``<id>.safetensors`` and its placeholder ``<id>``,
            in lower case.
        label: Class that it was searched for, or None when it belongs to all of them.
        template: Text around the tokens; ``{}`` is where they go, e.g. ``'a photo of {}'``.
        joiner: Text between tokens. diffusers expands a multi-vector token with spaces, so a space
            makes the saved prompt give the same image there. ``', '`` reads the files of the
            method's authors as their code did.
        turn: Its place where something is given to prompts in turn: the place of its start if the
            search began at a list of starts, otherwise its place among the prompts of the search.
        widths: Width of each text encoder's part of an embedding; by default there is one part.

    Raises:
        ValueError: If ``embeddings`` is not two-dimensional and finite, ``id`` is no file name,
            ``template`` does not contain ``{}`` once, or ``widths`` are not one or two that add up
            to the embeddings' width.
    """

    def __init__(
        self,
        embeddings: Tensor,
        id: str,
        label: int | None = None,
        template: str = '{}',
        joiner: str = ' ',
        turn: int = 0,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if embeddings.ndim != 2 or len(embeddings) == 0:
            raise ValueError(
                f'embeddings of prompt {id!r} must be (n, width) with n >= 1, '
                f'got {tuple(embeddings.shape)}'
            )
        if not torch.isfinite(embeddings).all():
            raise ValueError(f'embeddings of prompt {id!r} contain NaN or Inf')
        if not isinstance(id, str) or not re.fullmatch(r'[\w.-]+', id) or not id.strip('.'):
            raise ValueError(
                'id must consist of letters, digits, ".", "-" and "_", and not of dots alone, got '
                f'{id!r}'
            )
        if template.count('{}') != 1:
            raise ValueError(f"template must contain '{{}}' exactly once, got {template!r}")
        widths = (embeddings.shape[1],) if widths is None else tuple(widths)
        if len(widths) > 2 or sum(widths) != embeddings.shape[1]:
            raise ValueError(
                f'widths of prompt {id!r} must be one or two that add up to {embeddings.shape[1]}, '
                f'got {widths}'
            )
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        self.embeddings = nn.Parameter(embeddings.detach().to(dtype, copy=True))
        self.id = id
        self.label = label
        self.template = template
        self.joiner = joiner
        self.turn = turn
        self.widths = widths

    @property
    def placeholder(self) -> str:
        """The token that stands for this prompt in a textual-inversion file.

        In lower case, since CLIP's tokenizer lowers its text and diffusers then would not find a
        capital placeholder to expand into the tokens after the first.
        """
        return f'<{self.id.lower()}>'

    @property
    def text(self) -> str:
        """The prompt as one writes it in diffusers after ``load_textual_inversion``."""
        return self.template.replace('{}', self.placeholder)

    def extra_repr(self) -> str:
        n, width = self.embeddings.shape
        return f'id={self.id!r}, tokens={n}, width={width}, label={self.label}'


def ids_of(names: Sequence[str], runs: bool = False) -> list[str]:
    """Ids that stand for names: file names, a different one for each different name.

    What is no letter or digit becomes ``_``. Where names would then be one, as those that differ in
    a vowel sign, in ``<`` and ``>``, or (on some file systems) in capitals, or where one is too
    long for a file, a part of the name's hash is put behind it. It depends on nothing but the name.

    Args:
        names: What the ids stand for.
        runs: Whether several such characters in a row become one ``_``.

    Returns:
        The id of each name; equal names have equal ids.
    """
    pattern = r'[^\w.-]+' if runs else r'[^\w.-]'
    plain = {name: re.sub(pattern, '_', name) for name in names}
    counts = Counter(id.lower() for id in plain.values())
    ids = []
    for name in names:
        id = plain[name]
        if counts[id.lower()] > 1 or len(id.encode()) > LONGEST:
            short = id.encode()[: LONGEST - 20].decode(errors='ignore')
            id = f'{short}.{hashlib.sha256(name.encode()).hexdigest()[:6]}'
        ids.append(id)
    return ids


def draw_from_vocabulary(table: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` embeddings from N(mean, covariance) of the vocabulary's embeddings.

    A Gaussian combination of the centred rows has exactly the rows' covariance, so nothing has to
    be decomposed, also where the vocabulary is smaller than the width.

    Args:
        table: ``(words, width)``, the embeddings of the words in use.
        n: Number of embeddings to draw.
        generator: CPU generator; equal generators give equal draws on every device.

    Returns:
        ``(n, width)``, in float32 or the table's wider dtype and on its device.
    """
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    mean = table.mean(dim=0)
    weights = torch.randn(n, len(table), generator=generator, dtype=torch.float64)
    weights = weights.to(table.device, table.dtype) / max(1, len(table) - 1) ** 0.5
    return mean + weights @ (table - mean)
