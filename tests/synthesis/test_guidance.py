# SPDX-License-Identifier: Apache-2.0
"""Images that are steered while they are drawn, from settings to the pool."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmgap.feedback import AdversarialLoss, Feedback, TextGuidance
from mmgap.generators import InpaintingGenerator
from mmgap.loop import GAPSettings, Loop
from mmgap.pool import SamplePool
from mmgap.sources import SourceSet
from mmgap.synthesis import GuidanceSettings, SampleGuidance, SynthesisSettings, Synthesizer
from mmgap.targets import TargetModel
from tests.support.datasets import DrawnDataset
from tests.support.pools import EverySecond, Interrupted, contents
from tests.support.tiny import tiny_classifier

STEPS, COUNT = 4, 6
ATTACK = AdversarialLoss('untargeted')


class Darkness(Feedback):
    """Asks the image alone."""

    needs = 'image'

    def __call__(self, batch):
        return batch.drawn.mean(dim=(1, 2, 3))


@pytest.fixture(scope='module')
def generator(tiny_sd):
    return InpaintingGenerator(str(tiny_sd), size=16, guidance_scale=3.0, device='cpu')


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    return SourceSet(DrawnDataset(tmp_path_factory.mktemp('drawn')), (16, 16))


@pytest.fixture(scope='module')
def prompts(generator):
    return [generator.prompts.random_prompt(2, i, f'p{i}', label=i % 2) for i in range(2)]


@pytest.fixture(scope='module')
def target():
    return TargetModel(tiny_classifier(smooth=True), input_size=(16, 16))


@pytest.fixture(scope='module')
def run(generator, sources, prompts, target):
    """Draw into a pool, steered by terms if there are some; returns how many were drawn now."""

    def run(pool, terms=(ATTACK,), target=target, weight=0.5, every=1, critic=None, **settings):
        settings = SynthesisSettings(num_inference_steps=STEPS, batch_size=4, **settings)
        guidance = None
        if terms:
            guidance = SampleGuidance(terms, GuidanceSettings(weight=weight, every=every))
        make = Synthesizer(generator, sources, settings, critic, seed=1, guidance=guidance)
        return make.run(prompts, COUNT, pool, target, [ATTACK])

    return run


@pytest.fixture(scope='module')
def pools(run, tmp_path_factory):
    """Without guidance, and with it."""
    plain, guided = (SamplePool(tmp_path_factory.mktemp(name)) for name in ('plain', 'guided'))
    assert run(plain, terms=()) == run(guided) == COUNT
    return SimpleNamespace(plain=plain, guided=guided)


def pixels(pool):
    return np.stack([np.array(Image.open(pool.path(sample))) for sample in pool.samples])


def test_the_target_finds_guided_images_harder(pools, sources):
    plain, guided = ([s.target_loss_image for s in p.samples] for p in vars(pools).values())
    assert np.mean(guided) > np.mean(plain) and (np.array(guided) > plain).mean() > 0.5
    for sample, image, other in zip(
        pools.guided.samples, pixels(pools.guided), pixels(pools.plain), strict=True
    ):
        source = sources.load([sample.source_index])
        mask = source.masks[0, 0].numpy()
        kept = source.images[0].permute(1, 2, 0).numpy()[mask]
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(image[mask], kept)
        assert (image[~mask] != other[~mask]).mean() > 0.1


def test_the_manifest_tells_guided_images(pools, generator):
    for plain, guided in zip(pools.plain.samples, pools.guided.samples, strict=True):
        same = ('source_index', 'label', 'seed', 'prompt_id', 'target_loss_source', 'round')
        assert all(getattr(plain, name) == getattr(guided, name) for name in same)
        assert plain.generator == generator.fingerprint() != guided.generator
        # Each step but the last decodes twice, once with a gradient.
        more = 4 * (STEPS - 1) * generator.evaluations.share('decoder')
        assert guided.evaluations == pytest.approx(plain.evaluations + more, abs=1e-5)
        share = generator.evaluations.share('decoder')
        assert plain.evaluations == pytest.approx(2 * STEPS + share, abs=1e-5)
        assert guided.feedback == pytest.approx(-guided.target_loss_image)
    (settings,) = pools.guided.generators.values()
    guidance = settings.pop('guidance')
    assert {**settings} == pools.plain.generators[generator.fingerprint()]
    assert (guidance['weight'], guidance['every']) == (0.5, 1)
    assert [term['type'] for term in guidance['feedback']] == ['AdversarialLoss']


def test_no_weight_draws_the_same_images(run, pools, tmp_path):
    pool = SamplePool(tmp_path)
    run(pool, weight=0.0)
    np.testing.assert_array_equal(pixels(pool), pixels(pools.plain))
    assert {s.generator for s in pool.samples}.isdisjoint(s.generator for s in pools.plain.samples)


def test_another_target_steers_elsewhere(run, pools, tmp_path):
    model = tiny_classifier(smooth=True)
    with torch.no_grad():
        model.head.fc.weight.mul_(-1)
    other = TargetModel(model, input_size=(16, 16))
    pool = SamplePool(tmp_path)
    assert run(pool) == COUNT and contents(pool.folder) == contents(pools.guided.folder)
    before = pixels(pool)
    assert run(pool, target=other) == COUNT and run(pool, target=other) == 0
    assert (pixels(pool) != before).mean() > 0.1
    for changes in (dict(every=2), dict(weight=0.1), dict(terms=[AdversarialLoss('flip')])):
        assert run(pool, **changes) == COUNT and run(pool, **changes) == 0
    # Where only the image is asked, it does not matter who is in training.
    assert run(pool, terms=[Darkness()]) == COUNT
    before = pixels(pool)
    assert run(pool, terms=[Darkness()], target=other) == 0
    assert run(SamplePool(tmp_path / 'none'), terms=[Darkness()], target=None) == COUNT
    np.testing.assert_array_equal(pixels(SamplePool(tmp_path / 'none')), before)
    assert before.mean() < pixels(pools.plain).mean() - 1


def test_interrupted_run_goes_on_to_the_same_pool(run, pools, tmp_path):
    for room in (2, 4):
        folder = tmp_path / str(room)
        with pytest.raises(KeyboardInterrupt):
            run(Interrupted(folder, room))
        assert run(SamplePool(folder)) == COUNT - room
        assert contents(folder) == contents(pools.guided.folder)


def test_guided_images_are_judged_as_others(run, pools, tmp_path):
    pool = SamplePool(tmp_path / 'critic')
    assert run(pool, critic=EverySecond(), attempts=20) == len(pool) > COUNT == len(pool.kept)
    assert {sample.critic for sample in pool.samples} == {'coin'}
    assert [sample.kept for sample in pool.samples] == [s.agreement >= 0.5 for s in pool.samples]
    pool = SamplePool(tmp_path / 'useful')
    assert run(pool, overdraw=2) == 2 * COUNT and len(pool.kept) == COUNT
    assert {s.recipe for s in pools.guided.samples} <= {s.recipe for s in pool.samples}
    kept, all_drawn = ([s.usefulness for s in some] for some in (pool.kept, pool.samples))
    assert np.mean(kept) > np.mean(all_drawn)


def test_the_target_is_left_alone(run, pools, tmp_path):
    model = tiny_classifier(smooth=True).train()
    model.backbone.layer1.eval()
    model.backbone.conv1.weight.requires_grad_(False)
    model.head.fc.weight.grad = torch.full_like(model.head.fc.weight, 2.0)

    def state():
        return (
            {name: value.clone() for name, value in model.state_dict().items()},
            [module.training for module in model.modules()],
            [(p.requires_grad, p.grad is None) for p in model.parameters()],
        )

    before = state()
    run(SamplePool(tmp_path), target=TargetModel(model, input_size=(16, 16)))
    weights, *others = state()
    assert others == [*before[1:]] and (model.head.fc.weight.grad == 2).all()
    assert all(torch.equal(value, weights[name]) for name, value in before[0].items())
    assert contents(tmp_path) == contents(pools.guided.folder)


def test_what_guidance_needs(run, generator, tmp_path):
    pool = SamplePool(tmp_path)
    with pytest.raises(ValueError, match='guidance of samples asks the target; give a checkpoint'):
        run(pool, target=None)
    for terms in ([TextGuidance(['a b'])], [AdversarialLoss(weight=0.0)]):
        with pytest.raises(ValueError, match='needs a term of feedback that looks at images'):
            run(pool, terms=terms)
    assert len(pool) == 0
    for wrong, words in (
        (dict(weight=-1), 'guidance weight must be at least 0 and finite, got -1'),
        (dict(every=0), 'guidance every must be at least 1, got 0'),
        (dict(feedback=[]), 'guidance feedback is an empty list'),
    ):
        with pytest.raises(ValueError, match=words):
            SynthesisSettings(guidance=wrong)
    with pytest.raises(TypeError, match=r"synthesis guidance has no settings \['scale'\]"):
        SynthesisSettings(guidance=dict(scale=3))


def loop_of(synthesis, sources, label_type='classes'):
    hook = dict(
        type='mmgap.GAPHook',
        generator={},
        feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
        synthesis=synthesis,
    )
    settings = GAPSettings.from_config(Config(dict(hook=hook)).hook)
    generator = SimpleNamespace(critic=None, check_steps=lambda *_: None)
    return Loop(settings, generator, sources, Config())


def test_a_config_says_what_guides(sources):
    assert loop_of({}, sources).guidance is None
    shared = loop_of(dict(guidance=dict(weight=0.3, every=2)), sources)
    assert shared.guidance.feedback == shared.feedback
    assert (shared.guidance.settings.weight, shared.guidance.settings.every) == (0.3, 2)
    own = loop_of(
        dict(guidance=dict(feedback=[dict(type='mmgap.AdversarialLoss', mode='uniform')])), sources
    )
    assert [term.mode for term in own.guidance.feedback] == ['uniform']
    assert [term.mode for term in own.feedback] == ['flip']
    assert own.guidance.feedback == own.guidance.feedback  # prepared once
    assert own.synthesizer()._drawing.guidance.feedback == own.guidance.feedback
    dumped = json.loads(json.dumps(own.guidance.identity(TargetModel(tiny_classifier()))))
    assert dumped['feedback'][0]['mode'] == 'uniform' and dumped['target'][2:] == [None, 'bgr']


def test_terms_for_other_labels_do_not_guide(sources):
    terms = [dict(type='mmgap.DepthAdversarialLoss')]
    with pytest.raises(ValueError, match="DepthAdversarialLoss is for labels of type 'depth'"):
        loop_of(dict(guidance=dict(feedback=terms)), sources).synthesizer()
