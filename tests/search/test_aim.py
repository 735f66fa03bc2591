# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmgap.feedback import Critic
from mmgap.generators import InpaintingGenerator
from mmgap.loop import GAPSettings, Loop
from mmgap.search import PromptEvaluator, allocation, round_robin
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel
from tests.support.tiny import tiny_classifier


def test_shares_follow_the_rates():
    assert allocation([0.2, 0.6, 0.0], 0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert allocation([0.2, 0.6, 0.0], 1.0).tolist() == pytest.approx([0.25, 0.75, 0])
    assert allocation([0.2, 0.6, 0.0], 0.5).tolist() == pytest.approx([7 / 24, 13 / 24, 1 / 6])
    assert allocation([0.0, 0.0], 1.0).tolist() == [0.5, 0.5]
    for aim in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf'aim must be in \[0, 1\], got {aim}'):
            allocation([1.0], aim)


def test_turns_are_in_proportion_from_the_start():
    rng = np.random.default_rng(0)
    for parts in rng.dirichlet(np.ones(5), size=20):
        order = round_robin(parts, 200)
        assert round_robin(parts, 70) == order[:70]
        for count in (1, 10, 50, 200):
            drawn = Counter(order[:count])
            assert all(abs(drawn[i] - share * count) < 2 for i, share in enumerate(parts))
    for number in (1, 3, 7, 49):  # as many as there are: in their order, again and again
        assert round_robin([1 / number] * number, 3 * number) == list(range(number)) * 3


class RedCritic(Critic):
    """Agrees as much as an image's first pixel is red."""

    def __call__(self, images, masks, labels):
        return images[:, 0, 0, 0]


def test_failure_rate_counts_what_the_target_fails_on_and_the_critic_keeps(tiny_sd, drawn):
    generator = InpaintingGenerator(str(tiny_sd), size=16, guidance_scale=3.0, device='cpu')
    sources = SourceSet(drawn, (16, 16))
    target = TargetModel(tiny_classifier(), input_size=(16, 16))
    evaluator = PromptEvaluator(generator, target, sources, 2, 3, seed=5)
    prompts = [generator.prompts.random_prompt(2, i, f'p{i}') for i in range(3)]
    chosen, counts = list(range(8)), []
    for prompt in prompts:
        wrong, red = [], []
        for condition, images in evaluator.draw(prompt, chosen):
            with target.frozen():
                said = target(images, condition.labels).predictions
            wrong += (said != condition.labels).tolist()
            red += images[:, 0, 0, 0].tolist()
        critic = RedCritic(threshold=sorted(red)[4])
        both = [w and value >= critic.threshold for w, value in zip(wrong, red, strict=True)]
        assert evaluator.failure_rate(prompt, chosen) == pytest.approx(sum(wrong) / 8)
        assert evaluator.failure_rate(prompt, chosen, critic) == pytest.approx(sum(both) / 8)
        counts.append((sum(wrong), sum(both)))
    assert any(0 < both < wrong for wrong, both in counts)  # or the critic would not matter


@pytest.fixture
def aimed(tiny_sd, drawn, monkeypatch):
    """Build a search whose target fails as told: ``rates[class][start]``."""
    generator = InpaintingGenerator(str(tiny_sd), size=16, device='cpu')
    target = TargetModel(tiny_classifier(), input_size=(16, 16))

    def build(rates, draw=True, **initial):
        seen = []

        def failure_rates(evaluator, prompts, names, label, chosen, critic=None):
            seen.append([(p.template, len(p.embeddings)) for p in prompts])
            return rates[label]

        monkeypatch.setattr('mmgap.search.aim.failure_rates', failure_rates)
        initial = dict(dict(init=['x', 'y', 'z'], tokens=2, prompts_per_class=4), **initial)
        settings = GAPSettings.from_config(dict(generator={}, search=initial))
        loop = Loop(settings, generator, SourceSet(drawn, (16, 16)), Config())
        search = loop.prompt_search(target)
        return search, loop.initial_prompts(search, draw=draw), seen

    return build


def test_starts_go_where_the_target_fails(aimed):
    search, prompts, seen = aimed([[0.0, 0.5, 0.5], [0.9, 0.3, 0.0]], aim=1.0)
    assert [p.turn for p in prompts] == [1, 2, 1, 2, 0, 1, 0, 0]
    assert [p.label for p in prompts] == [0] * 4 + [1] * 4
    table = search.generator.prompts.text_prompt
    for prompt in prompts:
        word = table('xyz'[prompt.turn], 'word', tokens=2).embeddings
        assert torch.equal(prompt.embeddings, word)
    assert search.settings.restarts == 0  # a restart would leave the start
    # Each class is asked with its own name in the template.
    _, _, seen = aimed([[1.0] * 3] * 2, aim=1.0, template='a {class} {}')
    assert [[template for template, _ in row] for row in seen] == [['a a {}'] * 3, ['a b {}'] * 3]


def test_without_failures_starts_take_turns_through_all_classes(aimed):
    nowhere = aimed([[0.0] * 3] * 2, aim=1.0)[1]
    assert [p.turn for p in nowhere] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [p.turn % 3 for p in aimed(None)[1]] == [p.turn for p in nowhere]
    unasked = aimed(None, draw=False, aim=1.0)  # None would fail if it were asked
    assert unasked[2] == [] and len(unasked[1]) == 8


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(aim=2), r'search aim must be in \[0, 1\], got 2'),
        (dict(aim=1, init='x y'), "needs a list init .* got init='x y'"),
        (dict(aim=1, init=['x', 'vocabulary']), 'needs a list init'),
        (dict(aim=1, scope='all'), "got .* scope='all'"),
        (dict(aim=1, tokens=[1, 2]), r'one count of tokens, got \[1, 2\]'),
    ],
)
def test_bad_aim_is_told_before_anything_is_drawn(settings, words, aimed):
    for draw in (True, False):
        with pytest.raises(ValueError, match=words):
            aimed(None, draw=draw, **settings)
