# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import save_file

from mmgap.feedback import AdversarialLoss, TextGuidance
from mmgap.generators import InpaintingGenerator
from mmgap.generators.gradient import GradientPolicy
from mmgap.loop import GAPSettings, Loop
from mmgap.prompts import PromptBank, load_prompt
from mmgap.search import (
    NonFiniteLossError,
    PromptSearch,
    SearchSettings,
    SourceSplit,
    initial_prompts,
)
from mmgap.search.progress import PromptProgress
from mmgap.search.step import StepScore
from mmgap.sources import SourceSet
from mmgap.targets import TargetModel
from tests.support.datasets import DrawnDataset
from tests.support.tiny import tiny_classifier
from tests.support.tiny_search import SCHEDULE, make


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), guidance_scale=3.0)


@pytest.fixture(scope='module')
def sources(generator, tmp_path_factory):
    return SourceSet(DrawnDataset(tmp_path_factory.mktemp('drawn')), generator.size)


def embeddings(prompts):
    return [prompt.embeddings.detach().clone() for prompt in prompts]


def assert_same(first, second, atol=0.0):
    for a, b in zip(first, second, strict=True):
        if 'cuda' in (a.device.type, b.device.type):  # equality to the bit is claimed on the CPU
            atol = max(atol, 1e-5)
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=atol)


def recorded(search, monkeypatch):
    """The sources and seeds of every batch that the generator is asked for."""
    calls, call = [], InpaintingGenerator.__call__

    def record(self, condition, embeds, seeds, steps):
        calls.append((list(condition.indices), list(seeds), torch.is_grad_enabled()))
        return call(self, condition, embeds, seeds, steps)

    monkeypatch.setattr(InpaintingGenerator, '__call__', record)
    return calls


class ColourModel(torch.nn.Module):
    """Takes red pictures for class a and blue ones for class b: a shortcut to be found out."""

    def __init__(self) -> None:
        super().__init__()
        self.data_preprocessor = tiny_classifier().data_preprocessor
        self.scale = torch.nn.Parameter(torch.tensor(5.0))

    def forward(self, inputs, mode):
        red, _, blue = inputs.mean(dim=(2, 3)).unbind(dim=1)
        return self.scale * torch.stack([red - blue, blue - red], dim=1)


def test_target_fails_more_on_sources_that_it_never_saw(generator, sources):
    target = TargetModel(ColourModel())
    search, prompts = make(generator, sources, target=target, steps=12, images_per_prompt=4)
    before = [search.evaluate(prompt) for prompt in prompts]
    found = search.run(prompts)
    after = [search.evaluate(prompt) for prompt in prompts]
    for result, old, new in zip(found, before, after, strict=True):
        for told, facts in (('before', old), ('after', new)):
            for name in ('target_loss', 'accuracy'):
                assert getattr(result, f'{name}_{told}') == pytest.approx(facts[name], rel=1e-4)
    for result in found:
        assert result.steps == 12
        assert list(result.snapshots) == [0, 1, 2, 4, 8, 12]
        assert torch.equal(result.snapshots[12], result.prompt.embeddings)
    assert all(r.target_loss_after > r.target_loss_before + 0.05 for r in found), found
    assert json.dumps(found[1].summary(sources.classes)).startswith('{"id": "b-0", "class": "b"')


def test_nothing_but_the_prompts_changes(generator, sources):
    model = tiny_classifier().train()
    next(model.parameters()).requires_grad_(False)
    model.head.fc.weight.grad = torch.full_like(model.head.fc.weight, 2.0)
    pipe = generator.pipeline
    networks = [pipe.text_encoder, pipe.unet, pipe.vae, model]

    def everything():
        tensors, flags = [], []
        for network in networks:
            tensors += [value.clone() for value in network.state_dict().values()]
            tensors += [p.grad.clone() for p in network.parameters() if p.grad is not None]
            flags += [(p.requires_grad, p.grad is None) for p in network.parameters()]
            flags += [(m.training, len(m._forward_hooks)) for m in network.modules()]
            flags += ['forward' in m.__dict__ for m in network.modules()]
        return tensors, flags

    before = everything()
    search, prompts = make(generator, sources, target=TargetModel(model), steps=3)
    start = embeddings(prompts)
    search.run(prompts)
    search.evaluate(prompts[0])
    after = everything()
    assert after[1] == before[1]
    assert all(torch.equal(a, b) for a, b in zip(*(x[0] for x in (before, after)), strict=True))
    for prompt, old in zip(prompts, start, strict=True):
        assert not torch.equal(prompt.embeddings, old)
        assert prompt.embeddings.grad is None


def test_batch_size_does_not_matter(generator, sources):
    results = []
    for batch_size in (1, 3, 8):
        search, prompts = make(generator, sources, batch_size=batch_size, images_per_prompt=3)
        found = search.run(prompts)
        results.append(embeddings(prompts) + [torch.tensor([r.target_loss_after for r in found])])
    assert_same(results[1], results[0], atol=1e-4)
    assert_same(results[2], results[0], atol=1e-4)


def test_prompts_do_not_influence_each_other(generator, sources):
    """Nor where gradients are clipped, of which one is far larger than the other here."""
    sgd = dict(optimizer=dict(type='SGD', lr=1.0), clip_grad=dict(max_norm=1e-3))
    for settings in ({}, dict(optim_wrapper=sgd)):
        search, prompts = make(generator, sources, **settings)
        search.run(prompts)
        alone, again = make(generator, sources, **settings)
        alone.run(again[1:])
        assert_same(embeddings(prompts[1:]), embeddings(again[1:]), atol=1e-4)
    search, prompts = make(generator, sources, steps=1, optim_wrapper=sgd)
    before = embeddings(prompts)
    search.run(prompts)
    for prompt, start in zip(prompts, before, strict=True):
        assert 9e-4 < float((prompt.embeddings.detach() - start).norm()) < 1.01e-3


def test_no_steps_take_prompts_as_they_start(generator, sources, tmp_path):
    search, prompts = make(generator, sources, steps=0)
    search.try_out(prompts)
    starts = embeddings(prompts)
    found = search.run(prompts, tmp_path / 'search.safetensors', PromptBank(tmp_path / 'bank'))
    assert_same(embeddings(prompts), starts)
    assert len(list((tmp_path / 'bank').glob('*.safetensors'))) == len(prompts)
    for result in found:
        assert (result.steps, list(result.snapshots)) == (0, [0])
        assert result.target_loss_after == result.target_loss_before
        held_out = search.split.held_out(result.prompt.label)
        assert search.evaluator.evaluate(result.prompt, held_out)[0] == result.target_loss_after


@pytest.mark.parametrize('steps', [0, 2])
def test_without_holdout_nothing_is_evaluated(steps, generator, sources):
    search, prompts = make(generator, sources, steps=steps, holdout=0)
    found = search.run(prompts)
    for result in found:
        assert result.steps == steps
        about = result.summary(sources.classes)
        assert {
            about[f'{what}_{when}']
            for what in ('target_loss', 'accuracy')
            for when in ('before', 'after')
        } == {None}
        assert sorted(search.split.searched(result.prompt.label)) == sorted(
            sources.of_class(result.prompt.label)
        )
    drawn = search.calls()
    assert (drawn == {}) == (steps == 0)
    with pytest.raises(ValueError, match='holdout=0 leaves no sources'):
        search.evaluate(prompts[0])


def test_interrupted_search_goes_on(generator, sources, tmp_path, monkeypatch):
    settings = dict(steps=6, checkpoint_interval=2, param_scheduler=SCHEDULE)
    settings |= dict(max_restarts=1, patience=2, min_drop=0.5)  # with a restart on the way
    search, prompts = make(generator, sources, **settings)
    whole = search.run(prompts)
    expected = embeddings(prompts)
    step = PromptSearch.step
    for stop in (1, 4, 5):
        file = tmp_path / f'{stop}.safetensors'
        steps = []

        def interrupted(self, active, steps=steps, stop=stop):
            steps.append(1)
            if len(steps) > stop:
                raise KeyboardInterrupt
            return step(self, active)

        monkeypatch.setattr(PromptSearch, 'step', interrupted)
        search, prompts = make(generator, sources, **settings)
        with pytest.raises(KeyboardInterrupt):
            search.run(prompts, checkpoint=file)
        monkeypatch.setattr(PromptSearch, 'step', step)
        counted = _count_steps(monkeypatch, step)
        search, prompts = make(generator, sources, **settings)
        found = search.run(prompts, checkpoint=file)
        assert_same(embeddings(prompts), expected)
        for result, reference in zip(found, whole, strict=True):
            assert result.summary('ab') == reference.summary('ab')
            assert list(result.snapshots) == list(reference.snapshots)
            assert_same(result.snapshots.values(), reference.snapshots.values())
        total = max(r.steps + 2 * r.restarts for r in whole)
        assert len(counted) == total - stop // 2 * 2
        # A search that is over is only evaluated again.
        counted.clear()
        search, prompts = make(generator, sources, **settings)
        search.run(prompts, checkpoint=file)
        assert not counted
        assert_same(embeddings(prompts), expected)


def test_evaluations_are_those_that_the_generator_counts(generator, sources, tmp_path):
    counter = generator.evaluations
    search, prompts = make(generator, sources, steps=4, checkpoint_interval=1)
    before = counter.counts()
    found = search.run(prompts)
    counted = counter.since(before)
    # Two prompts, two images each a step; then two held-out sources as the search began and ended.
    images, evaluated, steps = 4 * 2 * 2, 2 * 2 * 2, search.settings.num_inference_steps
    assert counted == {
        'UNet2DConditionModel forward': 2 * steps * (images + evaluated),
        'UNet2DConditionModel backward': (2 * steps - 1) * images,
        'decoder forward': images + evaluated,
        'decoder backward': images,
    }
    each = [result.evaluations for result in found]
    assert each == pytest.approx([counter.total(counted) / 2] * 2, abs=1e-5)
    assert found[0].summary('ab')['evaluations'] == each[0]
    # Calls of an interrupted run count once, and what it had not saved does not.
    file = tmp_path / 'search.safetensors'
    search, prompts = make(generator, sources, steps=4, checkpoint_interval=2)
    search._take = _raise_at(search, 6)  # two prompts, three steps, the last of them unsaved
    with pytest.raises(KeyboardInterrupt):
        search.run(prompts, checkpoint=file)
    search, prompts = make(generator, sources, steps=4)
    assert search.calls() == {}
    assert [r.evaluations for r in search.run(prompts, checkpoint=file)] == each
    assert search.calls() == counted
    # A search by an older version, which did not count: nobody knows.
    with safe_open(file, framework='pt') as saved:
        meta = json.loads(saved.metadata()['search'])
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}
    del meta['calls']
    save_file(tensors, file, metadata={'search': json.dumps(meta)})
    search, prompts = make(generator, sources, steps=4)
    assert [r.evaluations for r in search.run(prompts, checkpoint=file)] == [None, None]


def _count_steps(monkeypatch, step):
    counted = []

    def counting(self, active):
        counted.append(len(active))
        return step(self, active)

    monkeypatch.setattr(PromptSearch, 'step', counting)
    return counted


@pytest.mark.parametrize(
    'other', ['settings', 'prompts', 'target', 'input', 'gradient', 'truncated', 'garbage']
)
def test_checkpoint_of_another_search_is_ignored(other, generator, sources, tmp_path, monkeypatch):
    file = tmp_path / 'search.safetensors'
    search, prompts = make(generator, sources, steps=2)
    search.run(prompts, checkpoint=file)
    settings = dict(steps=2, seed=1 if other == 'settings' else 0)
    if other == 'target':
        model = tiny_classifier()
        model.head.fc.bias.data += 0.1
        settings['target'] = TargetModel(model, input_size=(16, 16))
    if other == 'input':
        settings['target'] = TargetModel(tiny_classifier(), input_size=(16, 16))
        settings['target'].model.data_preprocessor.mean += 1
    if other == 'gradient':
        monkeypatch.setattr(generator, 'gradient', GradientPolicy('last_k'))
    if other == 'truncated':
        file.write_bytes(file.read_bytes()[:-30])
    if other == 'garbage':
        file.write_bytes(b'no search')
    search, prompts = make(generator, sources, **settings)
    if other == 'prompts':
        prompts[0].embeddings.data += 0.1
    counted = _count_steps(monkeypatch, PromptSearch.step)
    search.run(prompts, checkpoint=file)
    assert counted == [2, 2]


def test_what_may_change_between_two_runs(generator, sources, tiny_sd, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmgap.search.checkpoint._warn', said.append)
    noisy = InpaintingGenerator(str(tiny_sd), guidance_scale=3.0, eta=1.0)
    file = tmp_path / 'search.safetensors'
    search, prompts = make(generator, sources, steps=4, checkpoint_interval=1)
    step = PromptSearch.step
    counted = _count_steps(monkeypatch, step)
    monkeypatch.setattr(search, '_take', _raise_at(search, 4))  # two prompts, two steps
    with pytest.raises(KeyboardInterrupt):
        search.run(prompts, checkpoint=file)
    counted.clear()
    # Of a search under way nothing may change that decides the prompts, but all that does not.
    search, prompts = make(noisy, sources, steps=4)
    monkeypatch.setattr(search, '_take', _raise_at(search, 0))
    with pytest.raises(KeyboardInterrupt):
        search.run(prompts, checkpoint=file)
    assert len(said) == 1 and 'generator.eta differ' in said[0] and 'begins anew' in said[0]
    other = dict(steps=4, batch_size=3, checkpoint_interval=3, log_interval=7)
    counted.clear()
    search, prompts = make(generator, sources, **other)
    search.run(prompts, checkpoint=file)
    assert len(counted) == 2 and len(said) == 1
    expected = embeddings(prompts)
    # Of one that is complete also how images are drawn.
    counted.clear()
    search, prompts = make(noisy, sources, **other, num_inference_steps=3)
    search.run(prompts, checkpoint=file, bank=PromptBank(tmp_path))
    assert not counted and embeddings(prompts)[0].equal(expected[0])
    assert 'prompts are kept, with other generator.eta, search.num_inference_steps' in said[1]
    provenance = json.loads((tmp_path / 'a-0.json').read_text())
    assert provenance['generator'] == generator.fingerprint() != noisy.fingerprint()


def _raise_at(search, count):
    """A ``_take`` that ends the search after so many calls."""
    take, calls = search._take, []

    def broken(*args):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        take(*args)

    return broken


def test_early_stop_keeps_the_embeddings_that_reached_it(generator, sources, monkeypatch):
    seen = []

    def falling(self, active):
        """The first prompt reaches the threshold at its third step, the other never does."""
        seen.append([state.prompt.embeddings.detach().clone() for state in active])
        count = len(seen)
        losses = [0.05 if s.prompt.id == 'a-0' and count == 3 else 1.0 / count for s in active]
        ones = [torch.ones_like(state.prompt.embeddings) for state in active]
        return [StepScore(9.0, *score) for score in zip(losses, repeat(0.0), ones, strict=False)]

    monkeypatch.setattr(PromptSearch, 'step', falling)
    search, prompts = make(generator, sources, steps=5, stop_loss=0.1)
    found = search.run(prompts)
    assert [len(row) for row in seen] == [2, 2, 2, 1, 1]
    assert torch.equal(prompts[0].embeddings, seen[2][0])
    assert not torch.equal(seen[2][0], seen[1][0])
    assert [result.steps for result in found] == [3, 5]


def test_guidance_does_not_keep_a_prompt_from_stopping(generator, sources):
    """The attack alone is compared with the threshold, also in a resumed search."""
    text = TextGuidance(['a b'], weight=1e-6)
    text.prepare(generator, sources.classes)
    attack = AdversarialLoss('flip', weight=0.5)
    alone, prompts = make(generator, sources, [attack], steps=2)
    first = alone.step([PromptProgress(prompt, prompt.embeddings) for prompt in prompts])
    attacks = [score.attack for score in first]
    assert attacks == [score.loss for score in first]
    text.weight = 1e3
    both, prompts = make(generator, sources, [attack, text], steps=2)
    again = both.step([PromptProgress(prompt, prompt.embeddings) for prompt in prompts])
    assert [score.attack for score in again] == pytest.approx(attacks)
    assert min(score.loss for score in again) > max(score.loss for score in first)
    search, prompts = make(
        generator, sources, [attack, text], steps=2, stop_loss=1.01 * max(attacks)
    )
    assert [result.steps for result in search.run(prompts)] == [1, 1]
    with pytest.raises(ValueError, match='stop_loss=0.1 cannot be reached'):
        make(generator, sources, [text], steps=2, stop_loss=0.1)


def test_one_lucky_step_does_not_stop_a_prompt(generator, sources, monkeypatch):
    losses = [0.05, 1.0, 0.05, 0.06, 0.0]

    def lucky(self, active):
        ones = [torch.ones_like(state.prompt.embeddings) for state in active]
        step = [losses[len(s.losses)] for s in active]
        return [StepScore(x, x, 0.0, one) for x, one in zip(step, ones, strict=True)]

    monkeypatch.setattr(PromptSearch, 'step', lucky)
    search, prompts = make(generator, sources, steps=5, stop_loss=0.1, stop_window=2)
    assert [result.steps for result in search.run(prompts)] == [4, 4]


def test_prompts_that_do_not_move_start_again(generator, sources, monkeypatch):
    tried = []

    def stuck(self, active):
        """The first prompt never moves; the second does, and the third is past hope already."""
        tried.append({s.prompt.id: s.prompt.embeddings.detach().clone() for s in active})
        losses = [1 / (1 + len(s.losses)) if s.prompt.id == 'b-0' else 1.0 for s in active]
        hits = [0.2 if s.prompt.id == 'a-1' else 1.0 for s in active]
        gradients = [torch.zeros_like(s.prompt.embeddings) for s in active]
        return [StepScore(*score) for score in zip(losses, losses, hits, gradients, strict=True)]

    monkeypatch.setattr(PromptSearch, 'step', stuck)
    search, _ = make(generator, sources, steps=6, patience=4, max_restarts=2)
    starts = SearchSettings(prompts_per_class=2, tokens=3)
    prompts = initial_prompts(generator.prompts, sources.classes, starts)[:3]
    found = {result.prompt.id: result for result in search.run(prompts)}
    assert {id: (r.restarts, r.steps) for id, r in found.items()} == {
        'a-0': (2, 6),
        'a-1': (0, 6),
        'b-0': (0, 6),
    }
    starts = [tried[i]['a-0'] for i in (0, 4, 8)]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 3
    assert torch.equal(found['a-0'].snapshots[0], starts[2])
    assert len(tried) == 14


class Broken(AdversarialLoss):
    """Feedback that says NaN of one sample at its ``at``-th call."""

    def __init__(self, at: int, value: float = float('nan')) -> None:
        super().__init__('flip')
        self.at, self.value, self.calls = at, str(value), 0

    def __call__(self, draft):
        self.calls += 1
        loss = super().__call__(draft)
        if self.calls == self.at:
            loss = loss + torch.tensor([0.0, 0.0, float(self.value), 0.0]).to(loss)
        return loss


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_stops_the_search(value, generator, sources, tmp_path, monkeypatch):
    search, prompts = make(generator, sources, [Broken(3, value)])
    calls = recorded(search, monkeypatch)
    with pytest.raises(NonFiniteLossError) as error:
        search.run(prompts, bank=PromptBank(tmp_path))
    indices, seeds, _ = calls[-1]
    words = f'prompt b-0 at step 2 is {value} on source {indices[2]} with seed {seeds[2]}'
    assert words in str(error.value)
    two, good = make(generator, sources, steps=2)
    two.run(good)
    assert_same(embeddings(PromptBank(tmp_path)), embeddings(good))
    assert json.loads((tmp_path / 'a-0.json').read_text())['complete'] is False


def test_gradient_that_is_not_finite_stops_the_search(generator, sources):
    class SquareRoot(AdversarialLoss):
        def __call__(self, draft):
            return (draft.output.logits.sum(dim=1) * 0).abs().sqrt()

    search, prompts = make(generator, sources, [SquareRoot()])
    start = embeddings(prompts)
    with pytest.raises(NonFiniteLossError, match='gradient of prompt a-0 at step 0'):
        search.run(prompts)
    assert_same(embeddings(prompts), start)


def test_evaluation_that_is_not_finite_keeps_the_found_prompts(
    generator, sources, tmp_path, monkeypatch
):
    search, prompts = make(generator, sources, steps=2)
    call = TargetModel.__call__

    def broken(self, images, labels):
        output = call(self, images, labels)
        output.loss = output.loss if torch.is_grad_enabled() else output.loss * torch.nan
        return output

    monkeypatch.setattr(TargetModel, '__call__', broken)
    with pytest.raises(NonFiniteLossError, match='prompt a-0 is nan on held-out source'):
        search.run(prompts, bank=PromptBank(tmp_path))
    two, good = make(generator, sources, steps=2)
    monkeypatch.setattr(TargetModel, '__call__', call)
    two.run(good)
    assert_same(embeddings(PromptBank(tmp_path)), embeddings(good))


@pytest.mark.parametrize('scope', ['class', 'all'])
def test_fresh_sources_and_seeds_and_none_held_out(scope, generator, sources, monkeypatch):
    search, _ = make(generator, sources, steps=5)
    starts = SearchSettings(prompts_per_class=1, tokens=2, scope=scope)
    prompts = initial_prompts(generator.prompts, sources.classes, starts)[:1]
    calls = recorded(search, monkeypatch)
    search.run(prompts)
    searched = [call for call in calls if call[2]]
    evaluated = [call for call in calls if not call[2]]
    assert len(searched) == 5 and len(evaluated) == 2
    seeds = [seed for _, row, _ in searched for seed in row]
    assert len(set(seeds)) == 10
    assert len({tuple(indices) for indices, _, _ in searched}) > 1
    assert all(len(set(indices)) == 2 for indices, _, _ in searched)
    held_out = set(evaluated[0][0])
    assert len(held_out) == 2
    assert not held_out & {index for indices, _, _ in searched for index in indices}
    assert evaluated[0] == evaluated[1]  # initial and found embeddings: same sources and seeds
    labels = {int(sources.labels[i]) for indices, _, _ in calls for i in indices}
    assert labels == ({0} if scope == 'class' else {0, 1})


@pytest.mark.parametrize('counts, all_held_out', [((30, 9, 40), 5), ((30, 2, 1), 5), ((2, 2), 1)])
def test_what_is_held_out_no_search_of_a_run_has_seen(counts, all_held_out):
    """Neither that of a class nor that of all; a class of too few has none of its own."""
    labels = np.repeat(range(len(counts)), counts)
    sources = SimpleNamespace(
        classes=range(len(counts)),
        of_class=lambda label: np.flatnonzero((labels == label) | (label is None)),
    )
    split = SourceSplit(sources, 5, seed=1)
    searched, held_out = set(split.searched(None).tolist()), split.held_out(None)
    assert len(set(held_out)) == len(held_out) == all_held_out and not searched & set(held_out)
    for label, count in enumerate(counts):
        own = split.held_out(label)
        assert len(own) == min(5, count // 3) or (count < 3 and len(own) == count)
        if count >= 3:
            assert not (searched | set(split.searched(label).tolist())) & set(own)


def test_rounds_hold_out_the_same_sources(generator, sources):
    loop = Loop(GAPSettings(generator={}, search=SearchSettings()), generator, sources, Config())
    first, second = (loop.prompt_search(TargetModel(tiny_classifier()), i) for i in (0, 1))
    assert first.seed != second.seed
    assert [first.split.held_out(i) for i in (0, 1)] == [second.split.held_out(i) for i in (0, 1)]


def test_found_prompts_go_to_the_bank(generator, sources, tmp_path):
    optim_wrapper = dict(optimizer=dict(type=torch.optim.SGD, lr=1.0))
    search, prompts = make(generator, sources, steps=1, optim_wrapper=optim_wrapper)
    found = search.run(prompts, bank=PromptBank(tmp_path))
    for result in found:
        again = load_prompt(tmp_path / f'{result.prompt.id}.safetensors')
        assert torch.equal(again.embeddings, result.prompt.embeddings.cpu())
        about = json.loads((tmp_path / f'{result.prompt.id}.json').read_text())
        assert result.summary(sources.classes).items() <= about.items()
        assert about['generator'] == generator.fingerprint()
        assert about['settings']['feedback'][0]['mode'] == 'flip'


def test_bad_settings(generator, sources):
    for name in ('images_per_prompt', 'batch_size', 'patience'):
        with pytest.raises(ValueError, match=f'search {name} must be at least 1, got 0'):
            make(generator, sources, **{name: 0})
    with pytest.raises(ValueError, match='search holdout must not be negative, got -1'):
        SearchSettings(holdout=-1)
    with pytest.raises(ValueError, match='holdout=0 evaluates no prompt, but aim=0.5'):
        SearchSettings(holdout=0, aim=0.5, init=['a', 'b'])
    with pytest.raises(ValueError, match='feedback is empty'):
        PromptSearch(generator, TargetModel(tiny_classifier()), [], sources, SearchSettings())
    search, prompts = make(generator, sources)
    with pytest.raises(ValueError, match='different ids'):
        search.run([prompts[0], prompts[0]])
    optimizer = dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=4)
    search, prompts = make(generator, sources, optim_wrapper=optimizer)
    with pytest.raises(ValueError, match='accumulative_counts=4 has no use'):
        search.run(prompts)


@pytest.mark.parametrize('fresh', [True, False])
def test_fresh_or_fixed_sources_and_noise(fresh, generator, sources, monkeypatch):
    search, prompts = make(generator, sources, steps=3, fresh=fresh, lr=0)
    drawn = []
    score = search._score._score

    def noted(batch, *args):
        drawn.append(tuple(batch))
        return score(batch, *args)

    monkeypatch.setattr(search._score, '_score', noted)
    states = search.run(prompts)
    assert len(drawn) == 3 and len(set(drawn)) == (3 if fresh else 1)
    assert [result.steps for result in states] == [3, 3]


def test_text_guidance_alone_draws_nothing(generator, sources, monkeypatch):
    """Steps that need no image build no diffusion graph; the prompt moves all the same."""
    target = TextGuidance(['a b'])
    target.prepare(generator, sources.classes)
    search, prompts = make(generator, sources, [target], steps=30, lr=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(type(generator), 'draw', lambda *_: pytest.fail('an image was drawn'))
        patch.setattr(search.evaluator, 'compare', lambda state, _: state)
        states = search.run(prompts)
    assert all(state.losses[-1] < 0.9 * state.losses[0] for state in states)
    assert all(hit != hit for state in states for hit in state.hits)


def test_guidance_of_the_first_steps_only(generator, sources, monkeypatch):
    """Terms count between their own start and end; only steps that need images draw."""
    text = TextGuidance(['a b'], weight=2.0, end=2)
    text.prepare(generator, sources.classes)
    attack = AdversarialLoss('flip', start=1)
    seen, drawn = [], []
    call, draw = PromptSearch.step, type(generator).draw

    def step(self, active):
        drawn.clear()
        result = call(self, active)
        seen.append((sorted(self._score.means), bool(drawn)))
        return result

    monkeypatch.setattr(PromptSearch, 'step', step)
    monkeypatch.setattr(type(generator), 'draw', lambda *args: drawn.append(1) or draw(*args))
    search, prompts = make(generator, sources, [attack, text], steps=3)
    search.run(prompts)
    assert seen == [
        (['TextGuidance'], False),
        (['AdversarialLoss', 'TextGuidance'], True),
        (['AdversarialLoss'], True),
    ]
    with pytest.raises(ValueError, match='feedback is empty at step 2'):
        make(generator, sources, [text], steps=3)
    with pytest.raises(ValueError, match='feedback is empty at step 0'):
        make(generator, sources, [AdversarialLoss('flip', weight=0)], steps=3)
