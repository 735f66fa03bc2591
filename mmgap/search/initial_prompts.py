# SPDX-License-Identifier: Apache-2.0
"""Where a search starts: so many prompts for each class, or for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmgap.prompts import PromptEncoder, PromptEncoderPair, SoftPrompt, ids_of, load_prompt
from mmgap.seeds import derive_seed

SCOPES = ('class', 'all')


def initial_prompts(
    encoder: PromptEncoder | PromptEncoderPair,
    classes: Sequence[str],
    prompts_per_class: int = 4,
    tokens: int | Sequence[int] = 5,
    init: str | Sequence[str] = 'vocabulary',
    order: Sequence[Sequence[int]] | None = None,
    scope: str = 'class',
    template: str = '{}',
    seed: int = 0,
    prefix: str = '',
) -> list[SoftPrompt]:
    """Make the prompts that a search starts from.

    Args:
        encoder: The generator's prompt encoder.
        classes: Class names.
        prompts_per_class: Prompts for each class; with scope ``'all'`` as many in total as there
            would be for all classes, so that budgets compare.
        tokens: Tokens per prompt; a list is taken in turn.
        init: ``'vocabulary'`` draws from the Gaussian of the vocabulary's embeddings; otherwise a
            prompt file, or words that every prompt starts with; both are repeated in turn to fill
            a prompt. A list of these is given to the prompts in turn, through all classes.
            The place in the list is the prompt's number.
        order: Instead of in turn, the place in that list for each prompt of each class.
        scope: ``'class'`` searches each prompt on the sources of one class, ``'all'`` on all.
        template: Text around the tokens, see :class:`~mmgap.prompts.SoftPrompt`; ``{class}`` in it
            becomes the class name.
        seed: Seed of the draws.
        prefix: Start of the prompts' ids.

    Raises:
        FileNotFoundError: If ``init`` names a prompt file that does not exist.
        ValueError: If ``scope`` is unknown, a count is not positive, ``init`` has more tokens than
            a prompt, or the template names a class in scope ``'all'``.
    """
    if scope not in SCOPES:
        raise ValueError(f'scope must be one of {SCOPES}, got {scope!r}')
    counts = [tokens] if isinstance(tokens, int) else list(tokens)
    if prompts_per_class < 1 or not counts or min(counts) < 1:
        raise ValueError(
            f'prompts_per_class and tokens must be positive, got {prompts_per_class} and {tokens}'
        )
    starts = [init] if isinstance(init, str) else list(init)
    if not starts:
        raise ValueError('init is an empty list; give words, prompt files or leave it out')
    if scope == 'all' and '{class}' in template:
        raise ValueError(f"template {template!r} names a class, which needs scope='class'")
    prompts: list[SoftPrompt] = []
    ids = ids_of(classes)
    for label, name in enumerate(classes):
        for i in range(prompts_per_class):
            own = scope == 'class'
            n = counts[len(prompts) % len(counts)]
            id = f'{prefix}{ids[label] if own else "all"}-{i if own else len(prompts)}'
            number = len(prompts) if order is None else order[label][i]
            start = starts[number % len(starts)]
            about = dict(label=label if own else None, number=number)
            about |= dict(template=template.replace('{class}', name))
            if start == 'vocabulary':
                prompt = encoder.random_prompt(n, derive_seed(seed, 'init', id), id, **about)
            elif start.endswith(('.safetensors', '.bin', '.pt')):
                loaded = load_prompt(start, encoder.width)
                kept = loaded.embeddings.detach()
                if len(kept) > n:
                    raise ValueError(f'init={start!r} has {len(kept)} tokens, tokens={n} cuts it')
                kept = kept[torch.arange(n) % len(kept)]
                prompt = SoftPrompt(kept, id, widths=loaded.widths, **about)
            else:
                prompt = encoder.text_prompt(start, id, tokens=n, **about)
            prompts.append(prompt)
    return prompts
