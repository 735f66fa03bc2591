# SPDX-License-Identifier: Apache-2.0
"""What a round refuses: labels of another type or order, guidance by evaluation images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from mmgap.feedback import Critic, Feedback
from mmgap.sources import Sources


def check_label_types(parts: Sequence[Feedback | Critic | None], sources: Sources) -> None:
    """See that terms and critics are for the type of the labels; None is no part.

    Raises:
        ValueError: If one is for another type.
    """
    for part in parts:
        if part is not None and part.label_type not in (None, sources.label_type):
            raise ValueError(
                f'{type(part).__name__} is for labels of type {part.label_type!r}, those of the '
                f'training data are {sources.label_type!r}'
            )


def check_classes(sources: Sources, evaluation: Sequence[Any]) -> None:
    """See that the numbers of the labels mean the same in all splits.

    Args:
        sources: Of the training data.
        evaluation: Datasets that the run validates or tests on.

    Raises:
        ValueError: If one has other classes.
    """
    for dataset in evaluation:
        classes = dataset.metainfo.get('classes')
        if sources.label_type == 'classes' and classes and tuple(classes) != sources.classes:
            raise ValueError(
                f'{type(dataset).__name__} for evaluation has the classes {[*classes]}, the '
                f'training data {[*sources.classes]}: a label would mean two things. Give both '
                'the same, with metainfo=dict(classes=[…])'
            )


def check_model_classes(model: nn.Module, sources: Sources) -> None:
    """See that the model knows all classes of the sources, where its head says how many it knows.

    Raises:
        ValueError: If the data have more.
    """
    known = getattr(getattr(model, 'head', None), 'num_classes', None)
    if sources.label_type == 'classes' and isinstance(known, int) and known < len(sources.classes):
        raise ValueError(
            f'the head of the model has num_classes={known}, the training data have the '
            f'{len(sources.classes)} classes {_some(sources.classes)}; set num_classes='
            f'{len(sources.classes)} in model.head and in data_preprocessor'
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    return ', '.join(names[:most]) + ' …' * (len(names) > most)


def check_guidance_images(feedback: Sequence[Feedback], evaluation: Sequence[Any]) -> None:
    """See that no term looks at images that the run is evaluated on.

    Args:
        feedback: Prepared terms.
        evaluation: Datasets that the run validates or tests on.

    Raises:
        ValueError: If one does.
    """
    guiding = {same_path(path) for term in feedback for path in term.guidance_images()}
    if not guiding:
        return
    for dataset in evaluation:
        for i in range(len(dataset)):
            path = dataset.get_data_info(i).get('img_path')
            if path and same_path(path) in guiding:
                raise ValueError(
                    f'guidance image {path} is also an image of {type(dataset).__name__}, which '
                    'the run is evaluated on; take other images for guidance'
                )


def same_path(path: str) -> str:
    """One spelling of a path for all that lead to a file; addresses stay as they are."""
    return path if '://' in path else os.path.realpath(path)
