# SPDX-License-Identifier: Apache-2.0
"""Depth maps as labels: from the source through synthesis and pool to the training batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmgap.compat import allow_mmcv_without_ops
from mmgap.datasets import SyntheticDataset, SyntheticMixDataset
from mmgap.feedback import ClipCritic, DepthAdversarialLoss, DepthCritic
from mmgap.generators import ControlNetGenerator
from mmgap.loop import GAPSettings, Loop
from mmgap.pool import SamplePool
from mmgap.search import PromptEvaluator
from mmgap.sources import DepthSourceSet
from mmgap.synthesis import SynthesisSettings, Synthesizer
from mmgap.targets import DepthTarget
from tests.support.pools import ABOUT
from tests.support.tiny import save_tiny_pipeline, tiny_depth_model


@pytest.fixture
def parts(tiny_sd, tiny_controlnet, drawn_depth):
    generator = ControlNetGenerator(str(tiny_sd), str(tiny_controlnet), size=16, device='cpu')
    prompts = [generator.prompts.random_prompt(2, i, f'p{i}', label=0) for i in range(2)]
    return generator, DepthSourceSet(drawn_depth, generator.size), prompts


def depth_loop(generator, sources, **settings):
    settings.setdefault('feedback', [dict(type='mmgap.DepthAdversarialLoss', loss='l1')])
    settings = GAPSettings.from_config(dict(settings, generator={}))
    return Loop(settings, generator, sources, Config())


def test_images_lie_beside_the_depth_that_they_were_drawn_for(parts, tmp_path):
    generator, sources, prompts = parts
    target, terms = DepthTarget(tiny_depth_model(), (32, 32)), [DepthAdversarialLoss('l1')]
    pool = SamplePool(tmp_path / 'pool')
    settings = SynthesisSettings(num_inference_steps=2, batch_size=4, aim=0.5)
    make = Synthesizer(generator, sources, settings)
    assert make.run(prompts, 8, pool, target, terms) == 8
    for sample in SamplePool(tmp_path / 'pool').samples:
        depth = np.array(Image.open(pool.depth_path(sample)))
        source = sources.load([sample.source_index])
        assert depth.dtype == np.uint16 and sample.depth_unit == 1e-3
        np.testing.assert_allclose(depth / 1000, source.depth[0, 0].numpy(), rtol=1e-6)
        image = torch.from_numpy(np.array(Image.open(pool.path(sample)))).permute(2, 0, 1) / 255
        with torch.no_grad(), target.frozen():
            told = target(image[None], source.depth)
        assert sample.target_loss_image == pytest.approx(float(told.loss), rel=0.05)
        assert sample.feedback < 0
    assert make.run(prompts, 8, pool, target, terms) == 0  # nothing is drawn twice
    pool.keep(lambda number, _: number < 3)
    assert sorted(p.name for p in (tmp_path / 'pool' / 'depth').iterdir()) == [
        f'{i:06d}.png' for i in range(3)
    ]


def test_what_a_depth_critic_drops_is_drawn_again(parts, tmp_path):
    generator, sources, prompts = parts
    settings = SynthesisSettings(num_inference_steps=2, batch_size=4)
    target = DepthTarget(tiny_depth_model(), (32, 32))

    def draw(name, threshold):
        critic = DepthCritic('unused.py', 'unused.pth', threshold=threshold)
        critic._target = target  # instead of a config and a checkpoint
        pool = SamplePool(tmp_path / name)
        Synthesizer(generator, sources, settings, critic).run(prompts, 8, pool)
        return SamplePool(tmp_path / name).samples

    recorded = draw('recorded', None)
    assert len(recorded) == 8 and all(sample.kept for sample in recorded)
    agreements = sorted(sample.agreement for sample in recorded)
    assert 0 < agreements[0] < agreements[-1] < 1
    threshold = agreements[3]
    judged = draw('judged', threshold)
    assert len(judged) > 8
    assert all(sample.kept == (sample.agreement >= threshold) for sample in judged)
    dropped = {sample.seed for sample in judged if not sample.kept}
    assert dropped and dropped.isdisjoint(sample.seed for sample in judged if sample.kept)


def test_judge_takes_the_share_of_right_pixels(parts):
    generator, sources, prompts = parts
    target = DepthTarget(tiny_depth_model(), (32, 32))
    evaluator = PromptEvaluator(
        generator, target, sources, num_inference_steps=2, batch_size=4, seed=0
    )
    _, hits = evaluator.per_source(prompts[0], range(6))
    assert 0 < sum(hits) < 6 and any(hit % 1 for hit in hits)
    assert evaluator.failure_rate(prompts[0], range(6)) == pytest.approx(1 - sum(hits) / 6)


def test_too_deep_for_16_bits(parts, tmp_path):
    generator, sources, prompts = parts
    sources._loader.depth_rescale_factor = 1e-4
    sources._loader.transform = lambda info: dict(
        info, gt_depth_map=np.full((20, 20), 9.0, np.float32)
    )
    with pytest.raises(ValueError, match='has depths of 90000 times its unit of 0.0001 m'):
        Synthesizer(generator, sources, SynthesisSettings(num_inference_steps=2)).run(
            prompts, 1, SamplePool(tmp_path / 'p')
        )
    assert not (tmp_path / 'p').exists()


def fill(folder, count=4):
    """Pictures whose red and green say what the depth is, so that they tell if it moves away."""
    pool = SamplePool(folder)
    for i in range(count):
        rng = np.random.default_rng(i)
        depth = rng.integers(1000, 9000, (40, 48)).astype(np.uint16)
        depth[rng.random(depth.shape) < 0.2] = 0
        image = np.stack([depth >> 8, depth & 255, np.zeros_like(depth)], axis=-1)
        pool.append(image.astype(np.uint8), depth, **{**ABOUT, 'label': 0, 'depth_unit': 1e-3})
    return pool


def pipeline():
    allow_mmcv_without_ops()
    from mmseg.utils import register_all_modules

    register_all_modules()
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
        # Nearest, so that a pixel of the picture can be compared with its depth.
        dict(type='RandomResize', scale=(48, 40), ratio_range=(1.0, 2.0), interpolation='nearest'),
        dict(type='RandomCrop', crop_size=(24, 24)),
        dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
        dict(type='PackSegInputs', meta_keys=('img_path', 'flip', 'flip_direction')),
    ]


def test_augmentation_moves_picture_and_depth_together(tmp_path):
    fill(tmp_path)
    dataset = SyntheticDataset(str(tmp_path), pipeline=pipeline())
    flips = set()
    for _ in range(8):
        for i in range(len(dataset)):
            sample = dataset[i]
            blue, green, red = sample['inputs'].int()  # OpenCV's order
            depth = sample['data_samples'].gt_depth_map.data[0]
            assert tuple(depth.shape) == (24, 24) and not blue.any()
            torch.testing.assert_close((256 * red + green) * 1e-3, depth, atol=1e-4, rtol=0)
            assert (depth == 0).any() and (depth > 0).any()
            flips.add(sample['data_samples'].flip_direction)
    assert flips == {None, 'horizontal', 'vertical'}


def test_mixes_with_real_depth_data(tmp_path):
    from mmgap.toyworld import ToyDepth

    fill(tmp_path)
    real = ToyDepth('train', size=20, pipeline=pipeline())
    mix = SyntheticMixDataset(real, str(tmp_path), ratio=0.5)
    np.random.seed(0)
    paths = [mix[i]['data_samples'].img_path for i in range(20)]
    generated = sum(path.startswith(str(tmp_path)) for path in paths)
    assert 3 < generated < 17
    info = SyntheticDataset(str(tmp_path)).get_data_info(2)
    assert info['depth_map_path'] == str(tmp_path / 'depth' / '000002.png')
    assert 'gt_label' not in info and info['seg_fields'] == []


def test_a_damaged_pool_names_the_depth_map(tmp_path):
    pool = fill(tmp_path)
    lines = pool.manifest.read_text().splitlines()
    assert json.loads(lines[1])['depth_file'] == 'depth/000001.png'
    pool.depth_path(pool.samples[1]).write_bytes(b'short')
    with pytest.raises(ValueError, match='depth/000001.png, which has 5 of'):
        SamplePool(tmp_path)
    wrong = dict(json.loads(lines[1]), depth_file='../elsewhere.png')
    pool.manifest.write_text('\n'.join([lines[0], json.dumps(wrong)]) + '\n')
    with pytest.raises(ValueError, match="must be depth/NUMBER.png .* '../elsewhere.png'"):
        SamplePool(tmp_path)


def test_another_unit_than_the_pipelines_is_refused(tmp_path):
    from mmgap.toyworld import ToyDepth

    fill(tmp_path)
    stages = pipeline()
    stages[1]['depth_rescale_factor'] = 1 / 512
    real = ToyDepth('train', size=4, pipeline=stages)
    with pytest.raises(ValueError, match='in units of 0.001 m, the pipeline .*=0.00195'):
        SyntheticMixDataset(real, str(tmp_path))
    with pytest.raises(ValueError, match='in units of 0.001 m, the pipeline .*=0.00195'):
        SyntheticDataset(str(tmp_path), pipeline=stages)


def test_parts_for_classes_and_for_depth_do_not_mix(parts, monkeypatch):
    generator, sources, _ = parts
    target = DepthTarget(tiny_depth_model(), (32, 32))
    words = "AdversarialLoss is for labels of type 'classes', .* are 'depth'"
    with pytest.raises(ValueError, match=words):
        depth_loop(generator, sources, feedback=[dict(type='mmgap.AdversarialLoss')]).prompt_search(
            target
        )
    loop = depth_loop(generator, sources)
    monkeypatch.setattr(Loop, 'critic', ClipCritic(clip=dict(model='x')))
    for build in (lambda: loop.prompt_search(target), loop.synthesizer):
        with pytest.raises(ValueError, match="ClipCritic is for labels of type 'classes'"):
            build()


def test_prompts_of_many_lengths_in_one_search(tiny_controlnet, drawn_depth, tmp_path):
    """The lengths of the depth configs, which need a text encoder of 77 tokens."""
    folder = save_tiny_pipeline(tmp_path / 'sd', tokens=77)
    generator = ControlNetGenerator(str(folder), str(tiny_controlnet), size=16, device='cpu')
    sources = DepthSourceSet(drawn_depth, generator.size)
    lengths = [1, 8, 16, 32]
    settings = dict(steps=2, num_inference_steps=2, images_per_prompt=1, batch_size=3, holdout=2)
    search = dict(settings, prompts_per_class=4, tokens=lengths)
    loop = depth_loop(generator, sources, search=search)
    search = loop.prompt_search(DepthTarget(tiny_depth_model(), (32, 32)))
    prompts = loop.initial_prompts(search)
    before = [prompt.embeddings.detach().clone() for prompt in prompts]
    assert [len(start) for start in before] == lengths
    together = generator.prompts.encode(prompts).detach()
    for prompt, hidden in zip(prompts, together, strict=True):
        alone = generator.prompts.encode([prompt])[0]
        torch.testing.assert_close(alone, hidden, atol=1e-5, rtol=0)
    search.run(prompts)
    for prompt, start in zip(prompts, before, strict=True):
        assert (prompt.embeddings != start).any(dim=1).all(), 'a token that does not move'


def test_search_finds_harder_images(parts):
    generator, sources, _ = parts
    settings = dict(
        prompts_per_class=2,
        tokens=[1, 8],
        steps=4,
        num_inference_steps=2,
        images_per_prompt=2,
        batch_size=4,
        holdout=2,
        max_restarts=0,
        fresh=False,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1)),
    )
    terms = [dict(type='mmgap.DepthAdversarialLoss', loss='ssi')]
    loop = depth_loop(generator, sources, search=settings, feedback=terms)
    found = loop.search(DepthTarget(tiny_depth_model(), (32, 32)))
    assert [len(result.prompt.embeddings) for result in found] == [1, 8]
    assert {result.prompt.id for result in found} == {'r0-scene-0', 'r0-scene-1'}
    for result in found:
        first, *_, last = result.snapshots
        assert (first, last) == (0, 4)
