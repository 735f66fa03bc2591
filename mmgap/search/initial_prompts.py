# SPDX-License-Identifier: Apache-2.0
"""Where a search starts: so many prompts for each class, or for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmgap.prompts import PromptEncoder, PromptEncoderPair, SoftPrompt, ids_of, load_prompt
from mmgap.search.settings import VOCABULARY, SearchSettings
from mmgap.seeds import derive_seed


def initial_prompts(
    encoder: PromptEncoder | PromptEncoderPair,
    classes: Sequence[str],
    settings: SearchSettings,
    seed: int = 0,
    prefix: str = '',
    order: Sequence[Sequence[int]] | None = None,
    round_index: int = 0,
) -> list[SoftPrompt]:
    """Make the prompts that a search starts from.

    Args:
        encoder: The generator's prompt encoder.
        classes: Class names.
        settings: How many there are, and where they start. Where ``init`` is a list, the place in
            it is the prompt's turn.
        seed: Seed of the draws.
        prefix: Start of the prompts' ids.
        order: Instead of in turn, the place in that list for each prompt of each class.
        round_index: The round, by which prompts ``grow``.

    Raises:
        FileNotFoundError: If ``init`` names a prompt file that does not exist.
        ValueError: If ``init`` has more tokens than a prompt.
    """
    counts, starts = settings.token_counts(round_index), settings.starts
    prompts: list[SoftPrompt] = []
    ids = ids_of(classes)
    for label, name in enumerate(classes):
        for i in range(settings.prompts_per_class):
            own = settings.scope == 'class'
            n = counts[len(prompts) % len(counts)]
            id = f'{prefix}{ids[label] if own else "all"}-{i if own else len(prompts)}'
            turn = len(prompts) if order is None else order[label][i]
            start = starts[turn % len(starts)]
            fields: dict[str, Any] = dict(
                label=label if own else None,
                turn=turn,
                template=settings.template.replace('{class}', name),
            )
            if start == VOCABULARY:
                prompt = encoder.random_prompt(n, derive_seed(seed, 'init', id), id, **fields)
            elif start.endswith(('.safetensors', '.bin', '.pt')):
                loaded = load_prompt(start, encoder.width)
                kept = loaded.embeddings.detach()
                if len(kept) > n:
                    raise ValueError(f'init={start!r} has {len(kept)} tokens, tokens={n} cuts it')
                kept = kept[torch.arange(n) % len(kept)]
                prompt = SoftPrompt(kept, id, widths=loaded.widths, **fields)
            else:
                prompt = encoder.text_prompt(start, id, tokens=n, **fields)
            prompts.append(prompt)
    return prompts
