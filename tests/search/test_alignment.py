# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from mmgap.feedback import Critic
from mmgap.generators import InpaintingGenerator
from mmgap.search import AlignmentAlarm
from mmgap.search.progress import FoundPrompt
from mmgap.sources import SourceSet
from tests.support.tiny_search import make


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), guidance_scale=3.0, device='cpu')


@pytest.fixture
def sources(drawn, generator):
    return SourceSet(drawn, generator.size)


class Likes(Critic):
    """Agrees with images of prompts that are near a given one."""

    def __init__(self, evaluator, prompts) -> None:
        super().__init__(threshold=0.5)
        self.known = [
            images for prompt in prompts for _, images in evaluator.draw(prompt, evaluator.held_out)
        ]

    def __call__(self, images, masks, labels):
        liked = any(torch.equal(images, known) for known in self.known)
        return torch.full((len(images),), float(liked))


def found_prompt(generator, steps):
    prompts = {s: generator.prompts.random_prompt(2, s, 'a-0', label=0) for s in steps}
    last = prompts[max(steps)]
    snapshots = {s: p.embeddings.detach().clone() for s, p in prompts.items()}
    return FoundPrompt(last, 0.1, 9.0, 1.0, 0.0, max(steps), 0, snapshots), prompts


@pytest.mark.parametrize('good, kept', [([8], None), ([0, 2], 2), ([0], 0), ([], 0)])
def test_goes_back_to_the_last_good_step(good, kept, generator, sources):
    search, _ = make(generator, sources)
    evaluator, held_out = search.evaluator, search.split.held_out(0)
    evaluator.held_out = held_out
    found, prompts = found_prompt(generator, [0, 2, 4, 8])
    critic = Likes(evaluator, [prompts[step] for step in good])
    result = AlignmentAlarm(critic, max_dropped=0.5).check(found, evaluator, held_out)
    expected = found.snapshots[8 if kept is None else kept]
    assert torch.equal(result.prompt.embeddings, expected)
    assert result.kept_step == kept
    if kept is None:
        assert result.alarm is None and result.target_loss_after == 9.0
    else:
        assert result.alarm == '100% of its images are dropped, above 50%'
        loss, accuracy = evaluator.evaluate(prompts[kept], held_out)
        assert (result.target_loss_after, result.accuracy_after) == (loss, accuracy)
        assert result.summary(('a', 'b'))['kept_step'] == kept


def test_drift_is_the_distance_from_the_nearest_caption(generator, sources):
    search, _ = make(generator, sources)
    held_out = search.split.held_out(0)
    alarm = AlignmentAlarm(captions=['c d e', 'a b'], max_drift=1e-4)
    encoder = generator.prompts
    prompts = {0: encoder.text_prompt('a b', 'x'), 4: encoder.random_prompt(2, 0, 'x')}
    snapshots = {s: p.embeddings.detach().clone() for s, p in prompts.items()}
    found = FoundPrompt(prompts[4], 0.1, 9.0, 1.0, 0.0, 4, 0, snapshots)
    result = alarm.check(found, search.evaluator, held_out)
    assert result.kept_step == 0 and result.alarm.startswith('drift 0.')


def test_search_with_an_alarm(generator, sources, monkeypatch):
    """The alarm has its say before a prompt is kept."""
    alarm = dict(captions=['a b'], max_drift=1e-6)
    search, prompts = make(generator, sources, alarm=alarm)
    start = [prompt.embeddings.detach().clone() for prompt in prompts]
    found = search.run(prompts)
    assert all(result.kept_step == 0 for result in found)
    for prompt, before in zip(prompts, start, strict=True):
        assert torch.equal(prompt.embeddings, before)


def test_bad_settings():
    with pytest.raises(ValueError, match='needs max_dropped or max_drift'):
        AlignmentAlarm()
    with pytest.raises(ValueError, match='needs a critic with a threshold'):
        AlignmentAlarm(Critic(), max_dropped=0.5)
    with pytest.raises(ValueError, match=r'max_dropped must be in \[0, 1\], got 3'):
        AlignmentAlarm(Critic(0.5), max_dropped=3)
    with pytest.raises(ValueError, match='needs captions'):
        AlignmentAlarm(max_drift=0.5)
