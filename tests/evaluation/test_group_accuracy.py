# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from mmgap.evaluation.group_accuracy import GroupAccuracy, group_accuracy

NAMES = ('landbird-land', 'landbird-water', 'waterbird-land', 'waterbird-water')
COUNTS = (3498, 184, 56, 1057)


def reference(
    predictions: list[int], labels: list[int], groups: list[int], counts: tuple[int, ...]
) -> dict[str, float]:
    """What WILDS reports for Waterbirds, by plain loops over samples."""
    right, total = [0] * 4, [0] * 4
    for prediction, label, group in zip(predictions, labels, groups, strict=True):
        total[group] += 1
        if prediction == label:
            right[group] += 1
    values = {f'group/{NAMES[g]}': right[g] / total[g] for g in range(4)}
    accuracies = [right[g] / total[g] for g in range(4)]
    weighted = sum(counts[g] * accuracies[g] for g in range(4))
    return dict(
        worst_group=min(accuracies),
        mean=sum(accuracies) / 4,
        adjusted=weighted / sum(counts),
        **values,
    )


def sample(prediction: int, label: int, group: int | None, score: bool = False) -> DataSample:
    """A data sample as MMPretrain's classifier leaves it, with ``group`` among the metainfo."""
    result = DataSample().set_gt_label(label)
    if score:
        result.set_pred_score(torch.nn.functional.one_hot(torch.tensor(prediction), 2).float())
    else:
        result.set_pred_label(prediction)
    if group is not None:
        result.set_field(group, 'group', field_type='metainfo')
    return result


def evaluator(prefix: str | None = None, **meta) -> Evaluator:
    result = Evaluator(GroupAccuracy(prefix=prefix))
    result.dataset_meta = dict(groups=NAMES, train_group_counts=COUNTS) | meta
    return result


@pytest.fixture
def drawn() -> tuple[list[int], list[int], list[int]]:
    """Predictions, labels, groups of 101 samples: an odd number, so the last batch is short."""
    rng = np.random.default_rng(0)
    groups = rng.choice(4, 101, p=[0.5, 0.2, 0.1, 0.2])
    labels = groups // 2
    flips = rng.random(101) < np.array([0.05, 0.6, 0.7, 0.1])[groups]
    return (labels ^ flips).tolist(), labels.tolist(), groups.tolist()


@pytest.mark.parametrize('score', [False, True])
@pytest.mark.parametrize('batch_sizes', [[101], [32, 32, 32, 5], [1] * 101, [7, 50, 44]])
def test_evaluator_agrees_with_wilds(drawn, batch_sizes: list[int], score: bool) -> None:
    judge = evaluator()
    samples = [sample(p, y, g, score) for p, y, g in zip(*drawn, strict=True)]
    start = 0
    for size in batch_sizes:
        judge.process(samples[start : start + size], data_batch=None)
        start += size
    metrics = judge.evaluate(len(samples))
    expected = reference(*drawn, COUNTS)
    assert list(metrics) == list(expected)
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key


def test_samples_padded_for_equal_ranks_are_dropped(drawn) -> None:
    judge = evaluator()
    samples = [sample(p, y, g) for p, y, g in zip(*drawn, strict=True)]
    judge.process([*samples, *samples[:3]], data_batch=None)
    assert judge.evaluate(len(samples)) == pytest.approx(reference(*drawn, COUNTS))


def test_results_do_not_leak_into_the_next_evaluation(drawn) -> None:
    judge = evaluator()
    judge.process([sample(0, 1, g) for g in range(4)], data_batch=None)
    assert judge.evaluate(4)['mean'] == 0
    judge.process([sample(1, 1, g) for g in range(4)], data_batch=None)
    assert judge.evaluate(4)['mean'] == 1


def test_prefix() -> None:
    judge = evaluator(prefix='ood')
    judge.process([sample(1, 1, g) for g in range(4)], data_batch=None)
    assert judge.evaluate(4)['ood/worst_group'] == 1


def test_group_as_an_algorithm_key_works() -> None:
    judge = evaluator()
    samples = [sample(1, 1, None) for _ in range(4)]
    for group, item in enumerate(samples):
        item.set_field(torch.tensor([group]), 'group')
    judge.process(samples, data_batch=None)
    assert judge.evaluate(4)['worst_group'] == 1


def test_empty_group_is_nan_and_left_out() -> None:
    judge = evaluator()
    judge.process([sample(1, 1, 3), sample(1, 1, 0), sample(0, 1, 0)], data_batch=None)
    metrics = judge.evaluate(3)
    assert metrics['worst_group'] == 0.5 and metrics['mean'] == 0.75
    assert math.isnan(metrics['group/landbird-water'])
    # Groups of the training set have no samples here, so their share is unknown.
    assert 'adjusted' not in metrics


def test_adjusted_needs_only_the_groups_of_the_training_set() -> None:
    judge = evaluator(train_group_counts=(3, 0, 0, 1))
    judge.process([sample(1, 1, 3), sample(1, 1, 0), sample(0, 1, 0)], data_batch=None)
    assert judge.evaluate(3)['adjusted'] == pytest.approx((3 * 0.5 + 1) / 4)


def test_adjusted_is_left_out_with_a_note_when_counts_are_unknown(monkeypatch) -> None:
    notes = []
    monkeypatch.setattr(
        'mmgap.evaluation.group_accuracy.print_log', lambda message, **_: notes.append(message)
    )
    judge = evaluator(train_group_counts=None)
    judge.process([sample(1, 1, g) for g in range(4)], data_batch=None)
    assert 'adjusted' not in judge.evaluate(4)
    assert len(notes) == 1 and 'no `train_group_counts`' in notes[0]


def test_missing_group_names_the_config_line() -> None:
    with pytest.raises(KeyError, match="type='PackInputs', meta_keys=.*'group'"):
        evaluator().process([sample(1, 1, None)], data_batch=None)


def test_missing_group_names() -> None:
    judge = evaluator(groups=None)
    judge.process([sample(1, 1, 0)], data_batch=None)
    with pytest.raises(KeyError, match='names no `groups`'):
        judge.evaluate(1)


def test_counts_of_another_length() -> None:
    judge = evaluator(train_group_counts=(1, 2))
    judge.process([sample(1, 1, g) for g in range(4)], data_batch=None)
    with pytest.raises(ValueError, match=r'train_group_counts=\(1, 2\) must hold one count'):
        judge.evaluate(4)


def test_multi_label_is_refused() -> None:
    item = sample(1, 1, 0)
    item.set_gt_label([0, 1])
    with pytest.raises(ValueError, match='gt_label has 2 entries'):
        evaluator().process([item], data_batch=None)


def test_function_on_known_values() -> None:
    got = group_accuracy([True, False, True, True], [0, 0, 2, 2], 4)
    np.testing.assert_array_equal(got, [0.5, np.nan, 1.0, np.nan])


@pytest.mark.parametrize('group', [-1, 4])
def test_function_refuses_groups_out_of_range(group: int) -> None:
    with pytest.raises(ValueError, match='num_groups=4 allows 0 to 3'):
        group_accuracy([True, True], [0, group], 4)


def test_function_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match='correct has 1 entries, groups has 2'):
        group_accuracy([True], [0, 1], 4)
