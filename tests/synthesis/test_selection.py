# SPDX-License-Identifier: Apache-2.0
"""Which images are kept, against plain sorts; the measures, against NumPy and SciPy."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

from mmgap.feedback import AdversarialLoss, TextGuidance
from mmgap.generators import InpaintingGenerator
from mmgap.pool import SamplePool
from mmgap.sources import SourceSet
from mmgap.synthesis import Keep, SynthesisSettings, Synthesizer, choose, usefulness
from mmgap.targets import ClassOutput, TargetModel
from mmgap.targets.depth import DepthOutput
from tests.support.datasets import DrawnDataset
from tests.support.pools import EverySecond, Interrupted, contents
from tests.support.tiny import tiny_classifier

ANY = (0, None)


# The choice


@pytest.mark.parametrize('overdraw', [1, 2, 3, 4, 12])
@pytest.mark.parametrize('rank', [0.0, 0.5, 1.0])
def test_one_cell_is_a_sort(rank, overdraw):
    values = np.random.default_rng(overdraw).permutation(12) / 7
    chosen = choose(values.tolist(), [ANY] * 12, [True] * 12, overdraw, rank)
    count = 12 // overdraw
    start = {0.0: 0, 0.5: (12 - count) / 2, 1.0: 12 - count}[rank]
    places = np.sort(np.argsort(np.argsort(values))[chosen])
    assert len(places) == count and (np.diff(places) == 1).all() and abs(places[0] - start) <= 0.5


def test_equals_are_chosen_the_same_each_time():
    assert choose([1.0] * 4, [ANY] * 4, [True] * 4, 2) == [False] * 2 + [True] * 2


def test_each_class_and_group_keeps_its_share():
    """Though those of one are the most useful of all."""
    cells = [(0, 'x')] * 12 + [(0, 'y')] * 6 + [(1, 'x')] * 6
    values = [*range(100, 112), *range(6), *range(50, 56)]
    chosen = choose(values, cells, [True] * 24, 3)
    kept = Counter(cell for cell, is_kept in zip(cells, chosen, strict=True) if is_kept)
    assert kept == {(0, 'x'): 4, (0, 'y'): 2, (1, 'x'): 2}
    numbers = [value for value, is_kept in zip(values, chosen, strict=True) if is_kept]
    assert numbers == [108, 109, 110, 111, 4, 5, 54, 55]


def test_many_classes_have_one_each_and_many_groups_leave_the_choice_to_usefulness():
    cells = [(label, None) for label in range(32) for _ in range(4)]
    chosen = choose([float(i) for i in range(128)], cells, [True] * 128, 4)
    assert np.flatnonzero(chosen).tolist() == list(range(3, 128, 4))
    groups = [(0, group) for group in range(100)]
    values = np.random.default_rng(0).normal(size=100)
    chosen = choose(values.tolist(), groups, [True] * 100, 10)
    assert set(np.flatnonzero(chosen)) == set(np.argsort(values)[-10:])


def test_what_a_critic_leaves_too_few_of_comes_from_the_class_and_then_from_any():
    cells = [(0, 'x')] * 4 + [(0, 'y')] * 4 + [(1, 'x')] * 8
    values = [float(i) for i in range(16)]
    passes = [False, True, False, False] + [True] * 4 + [True] * 8
    # Two, two and four; of (0, 'x') one is there, so (0, 'y') gives three.
    chosen = choose(values, cells, passes, 2)
    assert np.flatnonzero(chosen).tolist() == [1, 5, 6, 7, 12, 13, 14, 15]
    passes[4:8] = [False, False, True, False]
    chosen = choose(values, cells, passes, 2)
    assert np.flatnonzero(chosen).tolist() == [1, 6, 10, 11, 12, 13, 14, 15]
    assert choose(values, cells, [False] * 16, 2) == [False] * 16


def test_whatever_comes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        overdraw, rank = int(rng.integers(1, 5)), float(rng.choice([0, 0.3, 1]))
        labels = np.repeat(rng.integers(3, size=rng.integers(1, 9)), overdraw)
        cells = [(int(label), 'g' if rng.random() < 0.3 else None) for label in labels]
        total = len(cells)
        values, passes = rng.normal(size=total), rng.random(total) < rng.choice([0.3, 0.8, 1.0])
        chosen = np.array(choose(values.tolist(), cells, passes.tolist(), overdraw, rank))
        assert chosen.sum() == min(total // overdraw, passes.sum())
        assert not (chosen & ~passes).any()
        for label in set(labels.tolist()):
            inside = labels == label
            wanted, there = inside.sum() // overdraw, (passes & inside).sum()
            assert (chosen & inside).sum() >= min(wanted, there)
            assert not passes.all() or (chosen & inside).sum() == wanted
            for cell in {cell for cell in cells if cell[0] == label}:
                own = np.array([other == cell for other in cells])
                least = min(wanted * own.sum() // inside.sum(), (passes & own).sum())
                assert (chosen & own).sum() >= least


# The measures


def test_measures_written_out():
    rng = np.random.default_rng(0)
    logits, truth = 3 * rng.normal(size=(20, 5)), rng.integers(5, size=20)
    losses, feedback = rng.normal(size=20), rng.normal(size=20)
    output = ClassOutput(torch.tensor(logits, requires_grad=True), torch.tensor(losses))
    probabilities = softmax(logits, axis=1)
    margins = [
        max(p for i, p in enumerate(row) if i != label) - row[label]
        for row, label in zip(probabilities, truth, strict=True)
    ]
    assert min(margins) < -0.2 and max(margins) > 0.2
    expected = dict(
        loss=losses, entropy=entropy(probabilities, axis=1), margin=margins, feedback=-feedback
    )
    for name, values in expected.items():
        found = usefulness(output, torch.tensor(truth), torch.tensor(feedback), name)
        assert not found.requires_grad
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-5, atol=1e-6)
    certain = ClassOutput(torch.tensor([[1e3, 0.0], [0.0, 1e3]]), torch.zeros(2))
    assert usefulness(certain, torch.tensor([0, 0]), None, 'entropy').tolist() == [0, 0]
    assert usefulness(certain, torch.tensor([0, 0]), None, 'margin').tolist() == [-1, 1]


def test_measures_that_there_are_not():
    depth = DepthOutput(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.tensor([1.0, 2.0]))
    assert usefulness(depth, depth.depth, None, 'loss').tolist() == [1, 2]
    for by in ('entropy', 'margin'):
        with pytest.raises(ValueError, match=f"by='{by}' needs a classifier; take 'loss'"):
            usefulness(depth, depth.depth, None, by)
    with pytest.raises(ValueError, match="by='feedback' needs a term .* looks at images"):
        usefulness(depth, depth.depth, None, 'feedback')
    with pytest.raises(ValueError, match=r"keep by must be one of \('loss', .* got 'beauty'"):
        Keep(by='beauty')
    for rank in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match=r'keep rank must be in \[0, 1\], got'):
            SynthesisSettings(keep=dict(rank=rank))
    with pytest.raises(TypeError, match=r"synthesis keep has no settings \['order'\]"):
        SynthesisSettings(keep=dict(order=1))
    with pytest.raises(ValueError, match='overdraw must be at least 1, got 0'):
        SynthesisSettings(overdraw=0)


# Synthesis

BATCH, COUNT = 4, 6  # of three times as many are drawn 12, a whole block, and 6


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), size=16, guidance_scale=3.0, eta=1.0, device='cpu')


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    dataset = DrawnDataset(tmp_path_factory.mktemp('drawn'))
    for i, info in enumerate(dataset.infos):
        info['group'] = int(i % 3 == 0)
    return SourceSet(dataset, (16, 16))


@pytest.fixture(scope='module')
def prompts(generator):
    return [generator.prompts.random_prompt(2, i, f'p{i}', label=i % 2) for i in range(2)]


@pytest.fixture(scope='module')
def target():
    return TargetModel(tiny_classifier(), input_size=(32, 32))


FEEDBACK = [AdversarialLoss('untargeted', weight=2.0), AdversarialLoss('uniform')]


@pytest.fixture(scope='module')
def run(generator, sources, prompts, target):
    """Draw into a pool; returns how many were drawn now."""

    def run(pool, count=COUNT, target=target, feedback=FEEDBACK, critic=None, **settings):
        settings = SynthesisSettings(num_inference_steps=2, batch_size=BATCH, **settings)
        make = Synthesizer(generator, sources, settings, critic, seed=1)
        return make.run(prompts, count, pool, target, feedback)

    return run


@pytest.fixture(scope='module')
def thrice(run, tmp_path_factory):
    """A pool of three times as many, of which a third is kept."""
    pool = SamplePool(tmp_path_factory.mktemp('thrice'))
    assert run(pool, overdraw=3) == 3 * COUNT
    return pool


def pngs(pool):
    return [pool.path(sample).read_bytes() for sample in pool.samples]


def expected_kept(samples, overdraw, value=lambda sample: sample.target_loss_image):
    """The best of each class of a block: those of each group as far as its share goes, then any."""
    kept = set()
    for start in range(0, len(samples), BATCH * overdraw):
        block = list(enumerate(samples[start:][: BATCH * overdraw], start=start))
        for label in (0, 1):
            own = sorted((p for p in block if p[1].label == label), key=lambda p: -value(p[1]))
            count, taken = len(own) // overdraw, []
            for group in {sample.source_group for _, sample in own}:
                part = [p for p in own if p[1].source_group == group]
                taken += part[: count * len(part) // len(own)]
            rest = [p for p in own if p not in taken]
            kept |= {place for place, _ in taken + rest[: count - len(taken)]}
    return [place in kept for place in range(len(samples))]


def test_nothing_to_choose_from_is_as_before(run, tmp_path):
    pools = [SamplePool(tmp_path / str(i)) for i in range(2)]
    run(pools[0])
    run(pools[1], overdraw=1)
    assert contents(pools[0].folder) == contents(pools[1].folder)
    assert b'useful' not in pools[0].manifest.read_bytes() and len(pools[0].kept) == COUNT


def test_the_most_useful_third_is_kept(run, thrice, tmp_path):
    assert len(thrice) == 3 * COUNT and len(thrice.kept) == COUNT
    plain = SamplePool(tmp_path)
    run(plain, count=3 * COUNT)
    # The same images in another order: three of a class, of which one is kept on average.
    same = {sample.recipe: sample for sample in plain.samples}
    assert {sample.recipe for sample in thrice.samples} == set(same)
    assert [s.label for s in thrice.samples] == [i // 3 % 2 for i in range(3 * COUNT)]
    for sample in thrice.samples:
        other = same[sample.recipe]
        pixels = [
            np.array(Image.open(pool.path(one))).astype(int)
            for pool, one in ((thrice, sample), (plain, other))
        ]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # in another batch
        assert sample.usefulness == sample.target_loss_image
        assert sample.usefulness == pytest.approx(other.target_loss_image, abs=1e-4)
    assert {s.useful_by.split('@')[0] for s in thrice.samples} == {'loss'}
    assert [s.kept for s in thrice.samples] == expected_kept(thrice.samples, 3)
    assert Counter(s.label for s in thrice.kept) == {0: 3, 1: 3}
    assert len({s.source_group for s in thrice.kept}) == 2
    # A whole block is the beginning of more.
    fewer = SamplePool(tmp_path / 'fewer')
    assert run(fewer, count=BATCH, overdraw=3) == 3 * BATCH
    assert fewer.samples == thrice.samples[: 3 * BATCH]


@pytest.mark.parametrize('by', ['entropy', 'margin', 'feedback'])
def test_usefulness_is_that_of_the_image(by, run, target, tmp_path):
    pool = SamplePool(tmp_path)
    run(pool, overdraw=2, keep=dict(by=by, rank=0.0))
    pixels = np.stack([np.array(Image.open(pool.path(sample))) for sample in pool.samples])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([sample.label for sample in pool.samples])
    with target.frozen(), torch.no_grad():
        logits = target(images, labels).logits.numpy()
    told = softmax(logits, axis=1)
    own, other = told[range(len(told)), labels], told[range(len(told)), 1 - labels]
    expected = dict(
        entropy=entropy(told, axis=1),
        margin=other - own,
        feedback=-2 * np.log(own) + np.log(told).mean(axis=1),
    )[by]
    found = [sample.usefulness for sample in pool.samples]
    assert found == pytest.approx(expected, abs=1e-2) and len(set(found)) == len(pool)
    least = expected_kept(pool.samples, 2, lambda sample: -sample.usefulness)
    assert [s.kept for s in pool.samples] == least


def test_interrupted_in_a_block(run, thrice, tmp_path):
    for room in (3, 11, 12, 15):
        folder = tmp_path / str(room)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted(folder, room), overdraw=3)
        assert len(SamplePool(folder)) == room
        # A block of which a part is there is drawn again: its selection is not known.
        assert run(SamplePool(folder), overdraw=3) == (18 if room < 12 else 6)
        assert contents(folder) == contents(thrice.folder)
    assert run(SamplePool(folder), overdraw=3) == 0


@pytest.mark.parametrize('change', ['rank', 'measure', 'target', 'feedback'])
def test_another_choice_is_made_anew(change, run, thrice, tmp_path):
    model = tiny_classifier()
    with torch.no_grad():
        model.head.fc.weight.mul_(-1)
    settings = dict(
        rank=dict(keep=dict(rank=0.0)),
        measure=dict(keep=dict(by='margin')),
        target=dict(target=TargetModel(model, input_size=(32, 32))),
        feedback=dict(keep=dict(by='feedback'), feedback=FEEDBACK[:1]),
    )[change]
    shutil.copytree(thrice.folder, tmp_path / 'pool')
    pool, fresh = SamplePool(tmp_path / 'pool'), SamplePool(tmp_path / 'fresh')
    assert run(pool, overdraw=3, **settings) > 0
    run(fresh, overdraw=3, **settings)
    assert contents(pool.folder) == contents(fresh.folder)
    assert pngs(pool) == pngs(thrice) and pool.samples != thrice.samples
    assert run(pool, overdraw=3, **settings) == 0


def test_blocks_of_another_size(run, thrice, tmp_path):
    shutil.copytree(thrice.folder, tmp_path / 'pool')
    pool = SamplePool(tmp_path / 'pool')
    for overdraw in (1, 2, 3):
        run(pool, overdraw=overdraw)
        assert len(pool) == overdraw * COUNT and len(pool.kept) == COUNT
    assert contents(pool.folder) == contents(thrice.folder)


def test_what_the_critic_drops_is_not_kept_and_not_drawn_again(run, thrice, tmp_path):
    pool = SamplePool(tmp_path / 'whole')
    assert run(pool, overdraw=3, critic=EverySecond()) == 3 * COUNT == len(pool)
    passed = [sample.agreement >= 0.5 for sample in pool.samples]
    for start, size in ((0, 12), (12, 6)):
        block = slice(start, start + size)
        kept = [sample.kept for sample in pool.samples[block]]
        assert sum(kept) == min(size // 3, sum(passed[block]))
        assert not any(k and not p for k, p in zip(kept, passed[block], strict=True))
    assert 0 < sum(passed) < len(pool) and pngs(pool) == pngs(thrice)
    assert [s.kept for s in pool.samples] != [s.kept for s in thrice.samples]
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(tmp_path / 'cut', 14), overdraw=3, critic=EverySecond())
    run(SamplePool(tmp_path / 'cut'), overdraw=3, critic=EverySecond())
    assert contents(tmp_path / 'cut') == contents(pool.folder)


def test_what_a_choice_needs(run, generator, tmp_path):
    pool = SamplePool(tmp_path)
    with pytest.raises(ValueError, match='overdraw=3 keeps what is useful to a target, and there'):
        run(pool, overdraw=3, target=None)
    words = TextGuidance(['a b'])
    words.prepare(generator, ('a', 'b'))
    for feedback in ([], [words]):
        with pytest.raises(ValueError, match="by='feedback' needs a term"):
            run(pool, overdraw=3, keep=dict(by='feedback'), feedback=feedback)
    assert len(pool) == 0
