# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from mmgap.evaluation import GroupDepth

GROUPS = ('clear', 'night', 'fog')


def images(number=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for i in range(number):
        depth, prediction = (0.5 + 20 * torch.rand(1, 6, 5, generator=rng) for _ in range(2))
        depth[:, :2] = 0
        yield dict(gt_depth_map=dict(data=depth), pred_depth_map=dict(data=prediction), group=i % 2)


def evaluate(samples, groups=GROUPS, **settings):
    metric = GroupDepth(**settings)
    metric.dataset_meta = dict(groups=groups)
    samples = list(samples)
    metric.process({}, samples[:3])
    metric.process({}, samples[3:])
    return metric.evaluate(len(samples))


def test_equals_numpy():
    found = evaluate(images())
    errors = {name: [] for name in GROUPS}
    for sample in images():
        depth, told = (sample[k]['data'].numpy() for k in ('gt_depth_map', 'pred_depth_map'))
        told, depth = told[depth > 0], depth[depth > 0]
        errors[GROUPS[sample['group']]].append((np.abs(told - depth) / depth).mean())
    groups = {name: np.mean(values) for name, values in errors.items() if values}
    assert 'group/fog' not in found
    for name, value in groups.items():
        assert found[f'group/{name}'] == pytest.approx(value, rel=1e-5)
    assert found['worst_group'] == pytest.approx(max(groups.values()), rel=1e-5)
    assert found['mean'] == pytest.approx(np.mean(list(groups.values())), rel=1e-5)


def test_groups_are_upstreams_metric_on_their_own():
    from mmseg.evaluation import DepthMetric

    found = evaluate(images())
    for number, name in enumerate(GROUPS[:2]):
        upstream = DepthMetric()
        own = [sample for sample in images() if sample['group'] == number]
        upstream.process({}, own)
        for metric, value in upstream.evaluate(len(own)).items():
            assert found[f'{name}/{metric}'] == pytest.approx(value, rel=1e-6)


def test_nan_of_one_group_is_the_worst():
    broken = [dict(sample) for sample in images()]
    last = max(sample['group'] for sample in broken)
    for sample in broken:
        if sample['group'] == last:
            data = torch.full_like(sample['pred_depth_map']['data'], float('nan'))
            sample['pred_depth_map'] = dict(data=data)
    found = evaluate(broken)
    assert np.isnan(found['worst_group']) and np.isnan(found['mean'])
    assert np.isfinite(found[f'group/{GROUPS[0]}'])


def test_images_without_known_depth_are_left_out():
    unknown = next(images(1))
    unknown['gt_depth_map']['data'].zero_()
    assert evaluate([*images(), unknown]) == evaluate(images())
    with pytest.raises(ValueError, match='no images with known depth'):
        evaluate([unknown])


def test_data_without_groups_are_one():
    from mmseg.evaluation import DepthMetric

    samples = [{k: v for k, v in sample.items() if k != 'group'} for sample in images()]
    upstream = DepthMetric()
    upstream.process({}, samples)
    unknown = dict(samples[0], gt_depth_map=dict(data=torch.zeros(1, 6, 5)))
    found = evaluate([*samples, unknown], groups=())
    for metric, value in upstream.evaluate(len(samples)).items():
        assert found[f'all/{metric}'] == pytest.approx(value, rel=1e-6)
    assert found['worst_group'] == found['mean'] == found['group/all'] == found['all/abs_rel']


def test_bad_input():
    samples = [{k: v for k, v in sample.items() if k != 'group'} for sample in images()]
    with pytest.raises(KeyError, match="meta_keys=\\(…, 'group'\\)"):
        evaluate(samples)
    with pytest.raises(KeyError, match='names no `groups`'):
        evaluate(images(), groups=())
