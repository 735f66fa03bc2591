# SPDX-License-Identifier: Apache-2.0
"""Macro F1 over the classes that are there, as WILDS reports it for iWildCam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmgap.registry import METRICS


def f1_per_class(predicted: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """F1 of each class that occurs among the labels.

    Args:
        predicted: ``(N,)`` classes.
        labels: ``(N,)`` classes.

    Returns:
        By class, in [0, 1]; 0 where a class is never predicted.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(predicted) != len(labels):
        raise ValueError(f'{len(predicted)} predictions, but {len(labels)} labels')
    scores = {}
    for label in np.unique(labels):
        right = np.sum((predicted == label) & (labels == label))
        scores[int(label)] = float(
            2 * right / (np.sum(predicted == label) + np.sum(labels == label))
        )
    return scores


@METRICS.register_module()
class MacroF1(BaseMetric):
    """Macro F1 and accuracy of a classifier; all values are fractions in [0, 1].

    - ``f1_macro``: mean F1 over the classes that occur among the labels. WILDS leaves absent
      classes out too; MMPretrain's ``SingleLabelMetric`` counts them as 0.
    - ``f1/<class>``: F1 of each of these classes.
    - ``accuracy``: share of right predictions.

    Args:
        collect_device: As for :class:`mmengine.evaluator.BaseMetric`.
        prefix: Put before every key, with a slash.
        collect_dir: As for :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = ''

    def __init__(
        self,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep prediction and label of each sample.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_label`` (1,) or ``pred_score`` (C,), and ``gt_label``.
        """
        for sample in data_samples:
            if 'pred_label' in sample:
                predicted = int(torch.as_tensor(sample['pred_label']))
            else:
                predicted = int(torch.as_tensor(sample['pred_score']).argmax())
            self.results.append((predicted, int(torch.as_tensor(sample['gt_label']))))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """The metrics named above.

        Raises:
            ValueError: If there are no samples.
        """
        if not results:
            raise ValueError('MacroF1: there are no samples to evaluate')
        predicted, labels = np.array(results).T
        scores = f1_per_class(predicted, labels)
        classes = (self.dataset_meta or {}).get('classes')
        names = {label: classes[label] if classes else str(label) for label in scores}
        for name, count in Counter(names.values()).items():
            if count > 1:  # as ImageNet's two classes `crane`
                same = [label for label in names if names[label] == name]
                names.update({label: f'{name} ({label})' for label in same})
        return dict(
            f1_macro=float(np.mean(list(scores.values()))),
            accuracy=float(np.mean(predicted == labels)),
            **{f'f1/{names[label]}': score for label, score in scores.items()},
        )
