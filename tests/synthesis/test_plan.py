# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.sources import SourceSet
from mmgap.synthesis import Planner, SynthesisSettings


@pytest.fixture
def sources(drawn):
    return SourceSet(drawn, (16, 16))


def planner(sources, seed=0, **settings):
    return Planner(None, sources, SynthesisSettings(**settings), seed=seed)


def blank(*labels):
    return [SoftPrompt(torch.zeros(1, 4), f'p{i}', label=label) for i, label in enumerate(labels)]


@pytest.mark.parametrize('cross', [True, False])
def test_plan_of_fewer_is_the_beginning_of_more(sources, cross):
    make = planner(sources, cross=cross, seed=3)
    plan = make.plan(blank(0, 1, 0, 1), 60)
    for count in (0, 1, 7, 24, 59):
        assert make.plan(blank(0, 1, 0, 1), count) == plan[:count]
    assert plan != planner(sources, cross=cross, seed=4).plan(blank(0, 1, 0, 1), 60)
    assert plan != make.plan(blank(0, 1, 0, 1), 60, round=1)
    assert len({image.seed for image in plan}) == 60


@pytest.mark.parametrize('count', [5, 24, 25, 41])
def test_classes_prompts_and_sources_take_turns(sources, count):
    plan = planner(sources).plan(blank(0, 1, 0), count)
    labels = [int(sources.labels[image.source]) for image in plan]
    assert labels == [i % 2 for i in range(count)]
    for label in (0, 1):
        own = [image for image in plan if sources.labels[image.source] == label]
        used = Counter(image.prompt_index for image in own)
        assert max(used.values()) - min(used.get(i, 0) for i in range(3)) <= 1
        deck = len(sources.of_class(label))
        for start in range(0, len(own), deck):  # no source again before all were used
            part = [image.source for image in own[start : start + deck]]
            assert len(set(part)) == len(part)
        if len(own) >= 3 * deck:
            first, second = ([d.source for d in own[i * deck :][:deck]] for i in (0, 1))
            assert first != second


@pytest.mark.parametrize(
    'classes, each, count, distinct',
    [
        (2, 4, 8, 4),
        (10, 4, 100, 40),
        (182, 1, 400, 182),
        (2, 20, 50, 25),
        (7, 3, 50, 21),
        (1, 3, 3, 3),
    ],
)
def test_few_images_are_of_many_prompts(classes, each, count, distinct):
    """Of several classes, and each prompt is drawn for two classes at least."""
    data = SimpleNamespace(
        classes=range(classes), labels=np.arange(classes), of_class=lambda label: np.array([label])
    )
    labels = [label for label in range(classes) for _ in range(each)]
    plan = planner(data).plan(blank(*labels), count)
    used = Counter(image.prompt_index for image in plan)
    assert len(used) == distinct and max(used.values()) <= 2 + 2 * min(used.values())
    drawn_for = {(image.prompt_index, image.source) for image in plan}
    owners = Counter(prompt for prompt, _ in drawn_for)
    assert min(owners.values()) >= min(2, classes)
    for label in range(classes if classes > 2 else 0):
        own = [labels[image.prompt_index] for image in plan if image.source == label]
        assert len(set(own)) == min(len(own), classes)


def test_crossed_or_not(sources):
    def pairs(cross, *labels):
        plan = planner(sources, cross=cross).plan(blank(*labels), 48)
        return {(labels[d.prompt_index], int(sources.labels[d.source])) for d in plan}

    assert pairs(True, 0, 1) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert pairs(False, 0, 1) == {(0, 0), (1, 1)}
    assert pairs(False, 0, None) == {(0, 0), (None, 0), (None, 1)}


def test_bad_input(sources):
    with pytest.raises(ValueError, match='no prompt for class b: with cross=False'):
        planner(sources, cross=False).plan(blank(0, 0), 4)
    with pytest.raises(ValueError, match='no prompt for class a'):
        planner(sources).plan([], 4)
    with pytest.raises(ValueError, match='must not be negative, got -1'):
        planner(sources).plan(blank(0), -1)
    with pytest.raises(ValueError, match='num_inference_steps must be at least 1, got 0'):
        planner(sources, num_inference_steps=0)
    with pytest.raises(ValueError, match=r'aim must be in \[0, 1\], got 2'):
        planner(sources, aim=2)
    with pytest.raises(ValueError, match='aim=0.5 needs a target'):
        planner(sources, aim=0.5).rates(blank(0), ['p0'], None, SamplePool('nowhere'))


def test_aim_goes_where_the_target_fails(sources):
    rates = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    make = planner(sources, aim=0.5)
    plan = make.plan(blank(0, 1, 0), 120, rates=rates)
    assert plan[:31] == make.plan(blank(0, 1, 0), 31, rates=rates)
    used = Counter((int(sources.labels[d.source]), d.prompt_index) for d in plan)
    expected = {(0, 0): 10, (0, 1): 40, (0, 2): 10, (1, 0): 25, (1, 1): 10, (1, 2): 25}
    assert used == expected
    assert planner(sources).plan(blank(0, 1, 0), 120, rates=rates) == planner(sources).plan(
        blank(0, 1, 0), 120
    )
