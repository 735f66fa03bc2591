# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmgap.datasets import SyntheticDataset
from mmgap.feedback import AdversarialLoss
from mmgap.generators import InpaintingGenerator
from mmgap.pool import SamplePool
from mmgap.prompts import SoftPrompt
from mmgap.search import PromptEvaluator
from mmgap.seeds import derive_rng, derive_seed
from mmgap.sources import SourceSet
from mmgap.sources.memory import SourceMemory
from mmgap.synthesis import SynthesisSettings, Synthesizer
from mmgap.targets import TargetModel
from tests.support.pools import EverySecond, Interrupted, contents
from tests.support.tiny import tiny_classifier


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), size=16, guidance_scale=3.0, eta=1.0, device='cpu')


@pytest.fixture
def sources(drawn):
    return SourceSet(drawn, (16, 16))


@pytest.fixture
def prompts(generator):
    encoder = generator.prompts
    return [encoder.random_prompt(2, i, f'p{i}', label=i % 2) for i in range(4)]


def synthesizer(generator, sources, critic=None, **settings):
    """With two steps and batches of four images."""
    settings = SynthesisSettings(**(dict(num_inference_steps=2, batch_size=4) | settings))
    return Synthesizer(generator, sources, settings, critic, seed=1)


def test_aimed_run_follows_its_own_rates(tmp_path, run, generator, sources, prompts):
    make = synthesizer(generator, sources, aim=1.0, aim_images=3)
    pool = SamplePool(tmp_path)
    make.run(prompts, 24, pool, run.target, round=2)
    evaluator = PromptEvaluator(generator, run.target, sources, 2, 4, derive_seed(1, 'aim', 2))
    rates = np.zeros((2, len(prompts)))
    for label in (0, 1):
        chosen = derive_rng(1, 'aim', 2, label).permutation(sources.of_class(label))[:3]
        rates[label] = [evaluator.failure_rate(prompt, chosen) for prompt in prompts]
    assert 0 < rates.mean() < 1  # or there would be nothing to aim at
    drawn = Counter((s.label, s.prompt_id.split('@')[0]) for s in pool.samples)
    for label, row in enumerate(rates):
        for prompt, share in zip(prompts, row / row.sum() if row.sum() else row, strict=True):
            assert abs(drawn[label, prompt.id] - 12 * share) < 2 or not row.sum()


@pytest.fixture
def run(generator, sources, prompts):
    target = TargetModel(tiny_classifier(), input_size=(32, 32))
    feedback = [AdversarialLoss('flip', weight=2.0), AdversarialLoss('untargeted')]

    def run(pool, count=10, batch_size=4, prompts=prompts, generator=generator, round=0, steps=2):
        settings = dict(num_inference_steps=steps, batch_size=batch_size)
        make = synthesizer(generator, sources, **settings)
        return make.run(prompts, count, pool, target, feedback, round)

    run.target = target
    return run


def test_interrupted_run_goes_on_to_the_same_pool(tmp_path, run):
    assert run(SamplePool(tmp_path / 'whole')) == 10
    for room in (0, 3, 4, 9):
        folder = tmp_path / str(room)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted(folder, room))
        assert len(SamplePool(folder)) == room
        assert run(SamplePool(folder)) == 10 - room
        assert contents(folder) == contents(tmp_path / 'whole')
    assert run(SamplePool(folder)) == 0
    assert contents(folder) == contents(tmp_path / 'whole')


def test_other_settings_are_drawn_again(tmp_path, run, generator, prompts):
    folder = tmp_path / 'pool'
    pool = SamplePool(folder)
    run(pool)
    before = contents(folder)
    # Crossed, prompts p0, p1 … take turns by twos: the fifth image is the first one of p2.
    moved = [*prompts[:2], SoftPrompt(prompts[2].embeddings.flip(1) * 5, 'p2', label=0), prompts[3]]
    assert run(pool, prompts=moved) == 6
    after = contents(folder)
    assert all(after[f'{i:06d}.png'] == before[f'{i:06d}.png'] for i in (0, 1, 2, 3, 6, 7, 8, 9))
    lines = [files['manifest.jsonl'].splitlines() for files in (before, after)]
    changed = [i for i, (old, new) in enumerate(zip(*lines, strict=True)) if old != new]
    assert changed == [4, 5]
    assert run(pool) == 6 and contents(folder) == before
    guided = generator.guidance_scale
    try:
        generator.guidance_scale = guided + 1
        assert run(pool) == 10 and contents(folder) != before
    finally:
        generator.guidance_scale = guided
    assert run(pool, steps=3) == run(pool) == 10 and contents(folder) == before
    assert run(pool, count=3) == 0 and len(contents(folder)) == 3 + 2
    assert run(pool, count=4, round=1) == 4 and run(pool, count=4, round=1) == 0
    assert [sample.round for sample in pool.samples] == [0] * 3 + [1] * 4
    assert run(pool) == 7 and contents(folder) == before  # a round drops those after it


def test_what_has_another_source_by_now_is_drawn_again(tmp_path, run, sources, drawn):
    pool = SamplePool(tmp_path / 'pool')
    run(pool)
    before, own = contents(pool.folder), pool.samples[4].source_index
    assert [sample.label_name for sample in pool.samples[:4]] == ['a', 'b', 'a', 'b']
    mask = np.zeros((20, 20), np.uint8)
    mask[3:5, 3:17] = 255
    Image.fromarray(mask).save(drawn.infos[own]['mask_path'])
    sources._memory = SourceMemory(sources._read, len(sources))
    around = [i for i, sample in enumerate(pool.samples) if sample.source_index == own]
    assert run(pool) == 10 - around[0]  # the pool's order is that of the plan
    after = contents(pool.folder)
    changed = [i for i in range(10) if after[f'{i:06d}.png'] != before[f'{i:06d}.png']]
    assert changed == around
    assert run(pool) == 0
    lines = [json.loads(line) for line in pool.manifest.read_text().splitlines()]
    for line in lines:
        line.pop('source_digest')
    pool.manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    pool.refresh()
    assert run(pool) == 0  # of an older version, which did not tell


def test_images_do_not_depend_on_the_batch_size(tmp_path, run):
    pools = [SamplePool(tmp_path / str(size)) for size in (1, 3, 10)]
    for pool, size in zip(pools, (1, 3, 10), strict=True):
        run(pool, batch_size=size)
    for samples in zip(*(pool.samples for pool in pools), strict=True):
        assert len({sample.recipe for sample in samples}) == 1
        images = [
            np.array(Image.open(pool.path(sample))).astype(int)
            for pool, sample in zip(pools, samples, strict=True)
        ]
        for other in images[1:]:
            assert (np.abs(images[0] - other) <= 1).mean() >= 0.999
        for name in ('target_loss_source', 'target_loss_image', 'feedback'):
            first, *others = (getattr(sample, name) for sample in samples)
            assert others == pytest.approx([first] * 2, abs=1e-4)


def test_losses_are_those_of_the_stock_model(tmp_path, run, sources, generator, prompts):
    """What the toolbox's own classifier says of the stored PNG and of the resized source."""
    from mmpretrain.structures import DataSample

    pool = SamplePool(tmp_path)
    run(pool)
    model = tiny_classifier()
    model.eval()

    def logits_and_loss(rgb, label):
        image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
        image = F.interpolate(image, (32, 32), mode='bilinear', antialias=True)
        sample = DataSample().set_gt_label(label)
        data = model.data_preprocessor(dict(inputs=[image[0].flip(0)], data_samples=[sample]))
        with torch.no_grad():
            loss = model(**data, mode='loss')['loss'].item()
            return model(data['inputs'], mode='tensor')[0], loss

    names = {p.id for p in prompts}
    for sample in pool.samples:
        image = np.array(Image.open(pool.path(sample)))
        logits, loss = logits_and_loss(image, sample.label)
        # The image was measured before its pixels were rounded to 8 bits.
        assert sample.target_loss_image == pytest.approx(loss, abs=5e-3)
        flipped, own = (
            F.cross_entropy(logits, torch.tensor(y)).item()
            for y in (1 - sample.label, sample.label)
        )
        assert sample.feedback == pytest.approx(2 * flipped - own, abs=2e-2)
        source = sources.load([sample.source_index])
        rgb = source.images[0].permute(1, 2, 0).numpy()
        assert sample.target_loss_source == pytest.approx(
            logits_and_loss(rgb, sample.label)[1], abs=1e-5
        )
        mask = source.masks[0, 0].numpy()
        np.testing.assert_array_equal(image[mask], rgb[mask])
        assert sample.label == sources.labels[sample.source_index]
        assert sample.prompt_id.split('@')[0] in names and sample.group is None
        assert sample.generator == generator.fingerprint()
    assert len({sample.target_loss_image for sample in pool.samples}) == 10


def test_target_is_left_alone_and_may_be_missing(tmp_path, run, generator, sources, prompts):
    run.target.model.train()
    before = {name: value.clone() for name, value in run.target.model.state_dict().items()}
    run(SamplePool(tmp_path / 'a'), count=4)
    after = run.target.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in run.target.model.modules())
    pool = SamplePool(tmp_path / 'b')
    synthesizer(generator, sources).run(prompts, 4, pool)
    losses = chain.from_iterable((s.target_loss_source, s.target_loss_image) for s in pool.samples)
    assert set(losses) == {None}
    for i in range(4):
        name = f'images/{i:06d}.png'
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_not_finite(tmp_path, run, generator, monkeypatch):
    draw = type(generator).__call__

    def broken(self, condition, embeds, seeds, steps, steering=None):
        images = draw(self, condition, embeds, seeds, steps)
        if len(seeds) == 2:  # the last batch
            images[1, 0, 0, 0] = float('nan')
        return images

    monkeypatch.setattr(type(generator), '__call__', broken)
    pool = SamplePool(tmp_path)
    with pytest.raises(FloatingPointError, match=r'source \d+ with seed \d+ has pixels'):
        run(pool)
    assert len(SamplePool(tmp_path)) == 8
    monkeypatch.undo()
    with torch.no_grad():
        run.target.model.head.fc.bias.fill_(float('inf'))
    with pytest.raises(FloatingPointError, match="gave {'target_loss_source': nan"):
        run(pool)
    assert len(SamplePool(tmp_path)) == 8


def test_what_the_critic_drops_is_drawn_again(tmp_path, generator, sources, prompts):
    def draw(pool, attempts=20, critic=EverySecond, count=10):
        make = synthesizer(generator, sources, critic(), attempts=attempts)
        return make.run(prompts, count, pool)

    pool = SamplePool(tmp_path / 'whole')
    assert draw(pool) == len(pool) > 10 == len(pool.kept)
    assert all(sample.kept == (sample.agreement >= 0.5) for sample in pool.samples)
    plain = SamplePool(tmp_path / 'plain')
    draw(plain, critic=lambda: None)
    planned = Counter((s.label, s.prompt_id) for s in plain.samples)
    assert Counter((s.label, s.prompt_id) for s in pool.kept) == planned
    assert len({sample.seed for sample in pool.samples}) == len(pool)
    # What is dropped is drawn again at once: whole batches of fewer are the beginning of more.
    fewer = SamplePool(tmp_path / 'fewer')
    draw(fewer, count=8)
    assert fewer.samples == pool.samples[: len(fewer)] and len(fewer.kept) == 8
    for room in (1, 5, len(pool) - 1):
        folder = tmp_path / str(room)
        with pytest.raises(KeyboardInterrupt):
            draw(Interrupted(folder, room))
        draw(SamplePool(folder))
        assert contents(folder) == contents(pool.folder)
    dataset = SyntheticDataset(str(pool.folder), metainfo=dict(classes=('a', 'b')))
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    assert paths == [str(pool.path(sample)) for sample in pool.kept]
    once = SamplePool(tmp_path / 'once')
    assert draw(once, attempts=1) == 10 > len(once.kept)
    # Another critic would have decided otherwise: what it did not see is drawn again.
    draw(once, critic=lambda: None)
    assert len(once) == len(once.kept) == 10
