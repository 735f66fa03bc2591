# SPDX-License-Identifier: Apache-2.0
"""Accuracy per group, in the worst group, and their averages."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmgap.registry import METRICS


def group_accuracy(
    correct: Sequence[bool] | np.ndarray, groups: Sequence[int] | np.ndarray, num_groups: int
) -> np.ndarray:
    """Fraction of correct samples in each group.

    Args:
        correct: (N,), whether each prediction is right.
        groups: (N,), the group of each sample, in [0, num_groups).
        num_groups: number of groups.

    Returns:
        (num_groups,) float64 in [0, 1]; NaN for a group without samples.

    Raises:
        ValueError: the lengths differ, or a group is out of range.
    """
    correct = np.asarray(correct, dtype=np.float64).reshape(-1)
    groups = np.asarray(groups, dtype=np.int64).reshape(-1)
    if len(correct) != len(groups):
        raise ValueError(f'correct has {len(correct)} entries, groups has {len(groups)}')
    if len(groups) and not (0 <= groups.min() and groups.max() < num_groups):
        raise ValueError(
            f'groups range from {groups.min()} to {groups.max()}, num_groups={num_groups} allows '
            f'0 to {num_groups - 1}'
        )
    counts = np.bincount(groups, minlength=num_groups)
    hits = np.bincount(groups, weights=correct, minlength=num_groups)
    return np.divide(hits, counts, out=np.full(num_groups, np.nan), where=counts > 0)


@METRICS.register_module()
class GroupAccuracy(BaseMetric):
    """Accuracy per group for single-label classification; all values are fractions in [0, 1].

    - ``group/<name>``: accuracy in each group; NaN for a group without samples.
    - ``worst_group``: the smallest of them, groups without samples left out.
    - ``mean``: their plain average, groups without samples left out.
    - ``adjusted``: their average weighted by the samples of each group in the *training* set (as
      WILDS reports it for Waterbirds). It needs ``train_group_counts`` in the metainfo, and samples
      of every group that has a weight; otherwise it is left out and the log says why.

    Group names come from ``groups`` in the metainfo of the data set, the group of a sample from the
    data info key ``group``. The latter must pass the pipeline's last step::

        dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group'))

    Args:
        collect_device: see :class:`mmengine.evaluator.BaseMetric`.
        prefix: put before every key, with a slash. None (default) adds nothing, so that
            ``save_best='worst_group'`` works.
        collect_dir: see :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        KeyError: a sample has no ``group`` or the metainfo has no ``groups``; the message says
            which line to add.
    """

    # Not None, which would log a warning about colliding names.
    default_prefix = ''

    def __init__(
        self,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps (correct, group) of each sample of a batch.

        Args:
            data_batch: unused.
            data_samples: predictions as dicts: ``pred_label`` (1,) or ``pred_score`` (C,),
                ``gt_label`` (1,), and ``group``.
        """
        for sample in data_samples:
            if 'group' not in sample:
                raise KeyError(
                    'GroupAccuracy: a sample has no `group`. The data set must give it, and the '
                    'last step of the test pipeline must keep it: '
                    "dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')); "
                    f'this sample has {sorted(sample)}'
                )
            if 'pred_label' in sample:
                predicted = _single_label(sample['pred_label'], 'pred_label')
            else:
                predicted = int(torch.as_tensor(sample['pred_score']).argmax())
            label = _single_label(sample['gt_label'], 'gt_label')
            # One entry per sample: results of several ranks are cut to the size of the data set.
            self.results.append((predicted == label, int(sample['group'])))

    def compute_metrics(self, results: list[tuple[bool, int]]) -> dict[str, float]:
        """Computes the metrics named above.

        Args:
            results: (correct, group) of every sample.
        """
        meta = self.dataset_meta or {}
        if not meta.get('groups'):
            raise KeyError(
                'GroupAccuracy: the metainfo of the data set names no `groups`; add '
                f"metainfo=dict(groups=('name of group 0', ...)) to it. Found: {sorted(meta)}"
            )
        names = tuple(meta['groups'])
        if not results:
            raise ValueError('GroupAccuracy: there are no samples to evaluate')
        correct, groups = zip(*results, strict=True)
        accuracy = group_accuracy(correct, groups, len(names))
        present = ~np.isnan(accuracy)
        if not present.all():
            empty = [name for name, there in zip(names, present, strict=True) if not there]
            _note(f'no samples of {empty}: left out of worst_group and mean, reported as NaN')
        metrics = {
            'worst_group': float(accuracy[present].min()),
            'mean': float(accuracy[present].mean()),
        }
        adjusted = _adjusted(accuracy, names, meta.get('train_group_counts'))
        if adjusted is not None:
            metrics['adjusted'] = adjusted
        metrics.update({f'group/{n}': float(a) for n, a in zip(names, accuracy, strict=True)})
        return metrics


def _adjusted(
    accuracy: np.ndarray, names: Sequence[str], counts: Sequence[int] | None
) -> float | None:
    """Average weighted by training-group counts, or None where it is not defined."""
    if counts is None:
        _note('`adjusted` is left out: the metainfo of the data set has no `train_group_counts`')
        return None
    weights = np.asarray(counts, dtype=np.float64)
    if weights.shape != accuracy.shape or (weights < 0).any() or weights.sum() == 0:
        raise ValueError(
            f'GroupAccuracy: train_group_counts={tuple(counts)} must hold one count >= 0 for each '
            f'of the {len(names)} groups {tuple(names)}, not all 0'
        )
    used = weights > 0
    if np.isnan(accuracy[used]).any():
        _note('`adjusted` is left out: a group of the training set has no samples here')
        return None
    return float(np.average(accuracy[used], weights=weights[used]))


def _single_label(value: Any, name: str) -> int:
    value = torch.as_tensor(value)
    if value.numel() != 1:
        raise ValueError(
            f'GroupAccuracy: {name} has {value.numel()} entries; only single-label classification '
            'is supported'
        )
    return int(value)


def _note(message: str) -> None:
    print_log(f'GroupAccuracy: {message}', logger='current', level=logging.INFO)
