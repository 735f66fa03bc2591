# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmgap.feedback import TargetModel
from mmgap.generators import InpaintingGenerator, SourceSet
from mmgap.search import Judge, failure_rates, in_turn, shares
from mmgap.seeds import derive_rng
from tests.tiny import tiny_classifier


def test_shares_follow_the_rates():
    assert shares([0.2, 0.6, 0.0], 0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert shares([0.2, 0.6, 0.0], 1.0).tolist() == pytest.approx([0.25, 0.75, 0])
    assert shares([0.2, 0.6, 0.0], 0.5).tolist() == pytest.approx([7 / 24, 13 / 24, 1 / 6])
    assert shares([0.0, 0.0], 1.0).tolist() == [0.5, 0.5]
    for aim in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf'aim must be in \[0, 1\], got {aim}'):
            shares([1.0], aim)


def test_turns_are_in_proportion_from_the_start():
    rng = np.random.default_rng(0)
    for parts in rng.dirichlet(np.ones(5), size=20):
        order = in_turn(parts, 200)
        assert in_turn(parts, 70) == order[:70]
        for count in (1, 10, 50, 200):
            drawn = Counter(order[:count])
            assert all(abs(drawn[i] - share * count) < 2 for i, share in enumerate(parts))
    for number in (1, 3, 7, 49):  # as many as there are: in their order, again and again
        assert in_turn([1 / number] * number, 3 * number) == list(range(number)) * 3


def test_failure_rates_are_those_of_the_target(tiny_sd, drawn):
    generator = InpaintingGenerator(str(tiny_sd), size=16, guidance_scale=3.0, device='cpu')
    sources = SourceSet(drawn, (16, 16))
    target = TargetModel(tiny_classifier(), input_size=(16, 16))
    judge = Judge(generator, target, sources, 2, 3, seed=5)
    prompts = [generator.prompts.random_prompt(2, i, f'p{i}') for i in range(2)]
    rates = failure_rates(judge, prompts, sources, 4)
    assert rates.shape == (2, 2)
    for label in (0, 1):
        chosen = derive_rng(5, 'aim', label).permutation(sources.of_class(label))[:4]
        for i, prompt in enumerate(prompts):
            hits = []
            for condition, images in judge.draw(prompt, chosen):
                with target.frozen():
                    hits += (target(images, condition.labels).predictions == label).tolist()
            assert rates[label, i] == pytest.approx(1 - sum(hits) / 4)
