# SPDX-License-Identifier: Apache-2.0
"""Guidance toward descriptions of the target distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgap.feedback.base import Feedback, FeedbackBatch, prepared
from mmgap.feedback.clip_model import ClipModel
from mmgap.files import read_text
from mmgap.generators import DiffusionGenerator
from mmgap.registry import TASK_UTILS
from mmgap.typed import checked

DISTANCES = ('l2', 'cosine')
ASSIGN = ('mean', 'turn')
SPACES = ('text_encoder', 'clip')


def hidden_state_distance(hidden: Tensor, description: Tensor, distance: str) -> Tensor:
    """Distance of prompts from a description in the text encoder's hidden states.

    - ``l2``: mean squared error over tokens and width (arXiv 2403.15309, section 3).
    - ``cosine``: 1 - cosine over the *feature* axis, averaged over tokens.

    Args:
        hidden: ``(B, length, width)`` hidden states.
        description: ``(B, length, width)`` or ``(length, width)``.
        distance: One of the above.

    Returns:
        ``(B,)``.
    """
    if distance == 'l2':
        return (hidden - description).square().mean(dim=(1, 2))
    return 1 - F.cosine_similarity(hidden, description.expand_as(hidden), dim=2).mean(dim=1)


def read_sentences(path: str) -> list[str]:
    """The lines of a text file that are neither empty nor comments (``#``).

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path!r} is no text file; for one sentence give a list of one')
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [line for line in lines if line and line[0] != '#']


@TASK_UTILS.register_module()
class TextGuidance(Feedback):
    """Pull prompts, or their images, toward one or several descriptions.

    Args:
        descriptions: Sentences, or a text file of them; or a list of them per class name, which
            tells the search the answer for each class and is to be reported as such.
        assign: ``'mean'`` pulls every prompt toward the mean of the descriptions, as the paper
            does; ``'turn'`` gives prompts the descriptions in turn: a search that
            begins at a list (``init``) should have the same list.
        space: ``'text_encoder'`` compares hidden states of the generator's own text encoder: needs
            no image and costs nothing. Of Stable Diffusion XL these are the states of both
            encoders and the pooled embedding; they come before the encoders' last norm, so ``l2``
            has another scale than with 1.x and 2.x: choose another ``weight``. ``'clip'`` compares
            the generated image with the text.
        distance: ``'l2'`` or ``'cosine'``; the clip space has the cosine only.
        clip: Arguments of :class:`~mmgap.feedback.clip_model.ClipModel` for ``space='clip'``.
        **kwargs: As for :class:`~mmgap.feedback.base.Feedback`.

    Raises:
        FileNotFoundError: If ``descriptions`` is a string and no file.
        ValueError: If a setting is unknown, or there are no descriptions.
    """

    def __init__(
        self,
        descriptions: str | Sequence[str] | Mapping[str, Sequence[str]],
        assign: str = 'mean',
        space: str = 'text_encoder',
        distance: str = 'l2',
        clip: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if assign not in ASSIGN:
            raise ValueError(f'assign must be one of {ASSIGN}, got {assign!r}')
        if space not in SPACES:
            raise ValueError(f'space must be one of {SPACES}, got {space!r}')
        if distance not in DISTANCES:
            raise ValueError(f'distance must be one of {DISTANCES}, got {distance!r}')
        if space == 'clip' and (clip is None or distance != 'cosine'):
            raise ValueError(
                "space='clip' needs clip=dict(model=…) and distance='cosine', got "
                f'clip={clip!r} and distance={distance!r}'
            )
        if space != 'clip' and clip is not None:
            raise ValueError(
                f"clip={clip!r} has no use with space={space!r}; set space='clip' and "
                "distance='cosine', or clip=None"
            )
        if isinstance(descriptions, str):
            descriptions = read_sentences(descriptions)
        lists = [descriptions]
        if isinstance(descriptions, Mapping):
            lists = list(descriptions.values())
        if not lists or not all(lists) or any(isinstance(texts, str) for texts in lists):
            raise ValueError(
                f'descriptions must be lists of at least one sentence, got {descriptions!r}'
            )
        self.descriptions: list[str] | dict[str, list[str]]
        if isinstance(descriptions, Mapping):
            self.descriptions = {name: list(texts) for name, texts in descriptions.items()}
        else:
            self.descriptions = list(descriptions)
        self.assign = assign
        self.space = space
        self.distance = distance
        self.clip = dict(clip) if clip else None
        self.needs = 'prompt' if space == 'text_encoder' else 'image'
        self._model: ClipModel | None = None
        self._towards: list[Tensor] | None = None

    def prepare(
        self, generator: DiffusionGenerator, classes: Sequence[str], cache: Path | None = None
    ) -> None:
        """Encode the descriptions.

        Raises:
            ValueError: If a description is too long for the encoder, or a class has none.
        """
        if self._towards is not None:
            return
        if self.clip is not None:
            self._model = ClipModel(**checked(ClipModel, self.clip))
        lists = self.descriptions
        if not isinstance(lists, dict):
            lists = dict.fromkeys(classes, lists)
        elif set(lists) != set(classes):
            raise ValueError(
                f'descriptions are for {sorted(lists)}, the classes are {sorted(classes)}; give '
                'each class its own, or one list for all'
            )
        self._towards = [self._encode(generator, lists[name]) for name in classes]

    @torch.no_grad()
    def _encode(self, generator: DiffusionGenerator, texts: Sequence[str]) -> Tensor:
        """``(descriptions, …)``: one row for each, or the mean alone.

        The mean of hidden states is brought back to the length that they have singly.
        """
        if self._model is not None:
            states = self._model.encode_texts(texts)
        else:
            states = generator.prompts.encode_text(texts).float()
        if self.assign == 'turn':
            return states
        mean = states.mean(dim=0)
        length = states.flatten(1).norm(dim=1).mean()
        return (mean * (length / mean.norm().clamp(min=1e-12)))[None]

    def __call__(self, batch: FeedbackBatch) -> Tensor:
        """``(B,)``: distance of each image, or of its prompt, from its description."""
        descriptions = prepared(self._towards)
        rows = [
            descriptions[label][turn % len(descriptions[label])]
            for label, turn in zip(batch.labels.tolist(), batch.turns, strict=True)
        ]
        aims = torch.stack(rows)
        if self._model is not None:
            return 1 - F.cosine_similarity(self._model.encode_images(batch.drawn), aims, dim=1)
        hidden = batch.hidden.float()
        return hidden_state_distance(hidden, aims.to(hidden.device), self.distance)
