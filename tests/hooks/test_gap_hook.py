# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmgap.compat import allow_checkpoint_history
from mmgap.generators import InpaintingGenerator
from mmgap.hooks import GAPHook, runner_access
from mmgap.loop import Loop
from mmgap.loop.report import summary_table
from mmgap.pool import SamplePool
from mmgap.prompts import load_prompt
from mmgap.search import NonFiniteLossError
from tests.support.recorder import train
from tests.support.small_config import small_config


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    allow_checkpoint_history()
    return torch.load(checkpoint, weights_only=True)['state_dict']


@pytest.mark.smoke
def test_new_images_are_seen_and_nothing_else_changes(whole_run, data, tiny_sd, tmp_path):
    plain = small_config(data, tiny_sd, tmp_path)
    plain.custom_hooks = []
    without, with_hook = train(plain), whole_run.recorder
    assert with_hook.lengths == without.lengths
    assert with_hook.rates == without.rates
    synthetic = [sum('/gap/pool/' in path for path in epoch) for epoch in with_hook.epochs]
    assert synthetic[0] == 0 and all(count > 0 for count in synthetic[1:])
    numbers = [
        {int(path[-10:-4]) for path in epoch if '/gap/pool/' in path} for epoch in with_hook.epochs
    ]
    assert all(number < 4 for number in numbers[1] | numbers[2])  # the first round's images
    assert any(number >= 4 for number in numbers[3] | numbers[4])  # the second round's


def test_nothing_of_the_loop_touches_training(data, tiny_sd, tmp_path, on_cpu):
    """With ratio 0 the weights are those of a run whose hook made no images at all, to the bit."""
    runs = []
    for name, rounds in (('one', 1), ('two', 2)):
        config = small_config(data, tiny_sd, tmp_path / name)
        config.train_cfg.max_epochs = 3
        config.custom_hooks[0].update(
            injection=dict(ratio=0.0), rounds=rounds, interval=1, budget=2 * rounds
        )
        config.custom_hooks[0].search.update(steps=1)
        runner = Runner.from_cfg(config)
        runner.train()
        runs.append(runner.model.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_configured_mix_extends(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    config.train_dataloader.dataset = dict(
        type='mmgap.SyntheticMixDataset',
        dataset=config.train_dataloader.dataset,
        ratio=0.5,
        mode='extend',
    )
    config.train_cfg.max_epochs = 2
    config.custom_hooks[0].update(rounds=1)
    recorder = train(config)
    real = len({path for path in recorder.epochs[0]})
    assert len(recorder.epochs[1]) == 2 * real
    assert sum('/gap/pool/' in path for path in recorder.epochs[1]) == real


def test_nan_stops_and_keeps_the_last_good_prompt(data, tiny_sd, tmp_path, monkeypatch):
    from mmgap.feedback import AdversarialLoss

    calls = [0]
    original = AdversarialLoss.__call__

    def broken(self, draft):
        calls[0] += 1
        return original(self, draft) * (float('nan') if calls[0] > 3 else 1.0)

    monkeypatch.setattr(AdversarialLoss, '__call__', broken)
    config = small_config(data, tiny_sd, tmp_path)
    with pytest.raises(NonFiniteLossError, match=r'r0-landbird-0 .* source \d+ with seed \d+'):
        Runner.from_cfg(config).train()
    kept = sorted((tmp_path / 'gap' / 'prompts').glob('*.json'))
    assert len(kept) == 2 and json.loads(kept[0].read_text())['complete'] is False
    assert not (tmp_path / 'gap' / 'pool').exists()


def test_late_nan_costs_nothing_that_was_paid_for(data, tiny_sd, tmp_path, monkeypatch):
    """With other steps for synthesis and another eta a resumed run goes on where it stopped."""
    draw, searched = InpaintingGenerator.__call__, []

    def broken(self, condition, embeds, seeds, steps, steering=None):
        images = draw(self, condition, embeds, seeds, steps)
        if torch.is_grad_enabled():
            searched.append(len(seeds))
        elif steps == 4 and len(list(tmp_path.glob('gap/pool/images/*.png'))) >= 4:
            images = images * float('nan')
        return images

    monkeypatch.setattr(InpaintingGenerator, '__call__', broken)

    def config(**generator):
        made = small_config(data, tiny_sd, tmp_path)
        made.custom_hooks[0].update(rounds=1)
        made.custom_hooks[0].generator.update(generator)
        made.custom_hooks[0].synthesis.update(num_inference_steps=3 if generator else 4)
        return made

    with pytest.raises(FloatingPointError, match='another num_inference_steps .* --resume'):
        Runner.from_cfg(config()).train()
    assert len(searched) == 1 + 3  # the image before training, and three steps
    before = SamplePool(tmp_path / 'gap' / 'pool').samples
    images = [(tmp_path / 'gap' / 'pool' / s.file).read_bytes() for s in before]
    resumed = config(eta=1.0)
    resumed.resume = True
    Runner.from_cfg(resumed).train()
    assert len(searched) == 4  # no search, and no image before training
    pool = SamplePool(tmp_path / 'gap' / 'pool')
    assert len(pool) == 8 and pool.samples[: len(before)] == before
    assert [pool.path(s).read_bytes() for s in before] == images
    etas = [pool.generators[s.generator]['eta'] for s in pool.samples]
    steps = [s.num_inference_steps for s in pool.samples]
    assert etas == [0.0] * len(before) + [1.0] * (8 - len(before))
    assert steps == [4] * len(before) + [3] * (8 - len(before)) and len(before) == 4
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())
    assert summary['images'] == 8 and summary['after'] is not None


@pytest.mark.parametrize('kind', ['channels', 'scheduler'])
def test_what_does_not_fit_ends_before_training(kind, data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    hook, expected = config.custom_hooks[0], ValueError
    if kind == 'channels':  # a model of grey pictures
        config.model.backbone.update(in_channels=1)
        config.model.data_preprocessor.update(mean=None, std=None)
        expected = RuntimeError
    else:
        hook.generator.update(scheduler=dict(type='FlowMatchEulerDiscreteScheduler'))
    with pytest.raises(expected) as caught:
        Runner.from_cfg(config).train()
    words = dict(channels='channels', scheduler='these can: ')
    assert words[kind] in str(caught.value)
    if kind == 'channels':
        assert 'one image that went through' in ''.join(caught.value.__notes__)
    assert not list(tmp_path.glob('*.pth'))


def test_the_image_before_training_changes_nothing(
    whole_run, as_whole_run, data, tiny_sd, tmp_path, monkeypatch
):
    """Up to the end of the epoch after the first round."""
    config = small_config(data, tiny_sd, tmp_path, workers=2)
    config.train_cfg.max_epochs = 2
    config.custom_hooks[0].update(rounds=1, budget=4)
    monkeypatch.setattr(Loop, 'try_out', lambda *args, **kwargs: None)
    Runner.from_cfg(config).train()
    manifests = [folder / 'gap/pool/manifest.jsonl' for folder in (tmp_path, whole_run.work_dir)]
    first, second = (manifest.read_text().splitlines() for manifest in manifests)
    assert len(first) == 4 and first == second[:4]
    other = weights_of(whole_run.work_dir / 'epoch_2.pth')
    for name, value in weights_of(tmp_path / 'epoch_2.pth').items():
        assert torch.equal(value, other[name]), name


def test_guidance_critic_and_alarm_in_the_loop(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path / 'work')
    clip = dict(model='mmgap://toybirds-clip')
    rng = np.random.default_rng(0)
    (tmp_path / 'pictures').mkdir()
    for i in range(3):
        picture = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
        picture.save(tmp_path / 'pictures' / f'{i}.png')
    hook = config.custom_hooks[0]
    config.train_cfg.max_epochs = 2
    hook.update(rounds=1, budget=6)
    hook.feedback += [
        dict(type='mmgap.TextGuidance', descriptions=['a b'], end=2),
        dict(type='mmgap.ImageGuidance', images=str(tmp_path / 'pictures'), clip=clip, start=1),
    ]
    hook.critic = dict(type='mmgap.ClipCritic', clip=clip, threshold=0.4)
    hook.synthesis.attempts = 2
    hook.search.alarm = dict(captions=['a b'], max_drift=1e-6)
    train(config)
    summary = json.loads((tmp_path / 'work' / 'gap' / 'summary.json').read_text())
    (about,) = summary['rounds']
    lines = (tmp_path / 'work' / 'gap' / 'pool' / 'manifest.jsonl').read_text().splitlines()
    kept = [json.loads(line)['kept'] for line in lines]
    assert summary['images'] == about['images'] == sum(kept)
    assert about['dropped'] == len(kept) - sum(kept) and 0 <= about['agreement'] <= 1
    assert all('drift' in prompt['alarm'] for prompt in about['prompts'])
    assert len(list((tmp_path / 'work' / 'gap' / 'features').iterdir())) == 1


@pytest.mark.parametrize(
    'limits, rounds, why',
    [
        (dict(plateau=1), 2, 'worst group on val is 0.200, it was 0.300 1 rounds ago'),
        (dict(max_seconds=0.001), 1, 's of 0.001 s are spent'),
    ],
)
def test_no_round_begins_after_a_plateau_or_the_time(
    limits, rounds, why, data, tiny_sd, tmp_path, monkeypatch
):
    config = small_config(data, tiny_sd, tmp_path)
    config.train_cfg.max_epochs = 4
    config.val_dataloader, config.val_cfg = config.test_dataloader, dict()
    config.val_evaluator = config.test_evaluator
    config.custom_hooks[0].update(rounds=3, interval=1, budget=6, **limits)
    config.custom_hooks[0].search.update(steps=1, grow=1)
    generators, gone = [], []
    build = Loop.build.__func__

    def watched(cls, *args, **kwargs):
        loop = build(cls, *args, **kwargs)
        generators.append(weakref.ref(loop.generator))
        return loop

    def release():
        gc.collect()
        gone.append(generators[0]() is None)

    monkeypatch.setattr(Loop, 'build', classmethod(watched))
    monkeypatch.setattr('mmgap.hooks.gap_hook.release_memory', release)
    worst = [0.1, 0.3, 0.2]
    evaluate = runner_access.evaluate
    monkeypatch.setattr(
        runner_access,
        'evaluate',
        lambda runner, split: (
            dict(worst_group=worst.pop(0)) if split == 'val' else evaluate(runner, split)
        ),
    )
    train(config)
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())
    assert len(summary['rounds']) == rounds and summary['images'] == 2 * rounds
    assert why in summary['stopped']
    assert gone == [True]  # nothing holds on to the generator when memory is given back
    sizes = {
        path.name[:2]: load_prompt(path).embeddings.shape[0]
        for path in (tmp_path / 'gap' / 'prompts').glob('*.safetensors')
    }
    assert sizes == {f'r{number}': 2 + number for number in range(rounds)}  # grown tokens


def test_plateau_needs_a_validation(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    config.custom_hooks[0].plateau = 1
    with pytest.raises(ValueError, match='plateau=1 needs a val_dataloader'):
        Runner.from_cfg(config).train()


def test_evaluation_images_cannot_guide(data, tiny_sd, tmp_path):
    """Found out before the first epoch."""
    config = small_config(data, tiny_sd, tmp_path)
    clip = dict(model='mmgap://toybirds-clip')
    config.custom_hooks[0].feedback += [
        dict(type='mmgap.ImageGuidance', images=str(data), clip=clip)
    ]
    with pytest.raises(ValueError, match='is also an image of Waterbirds, which the run is eval'):
        Runner.from_cfg(config).train()
    assert not list(tmp_path.glob('*.pth'))


def test_bad_settings(data, tiny_sd, tmp_path):
    generator = dict(type='mmgap.InpaintingGenerator', model='x')
    for bad, words in (
        (dict(injection=dict(ratio=1.5)), r'ratio must be in \[0, 1\], .* got 1.5'),
        (dict(rounds=0), 'rounds'),
        (dict(budget=1, rounds=2), 'budget=1'),
        (dict(start=-1), 'start'),
    ):
        with pytest.raises(ValueError, match=words):
            GAPHook(generator=generator, **bad)
    config = small_config(data, tiny_sd, tmp_path)
    config.custom_hooks[0].update(start=7)
    with pytest.raises(ValueError, match='round 1 would start after 9 epochs'):
        Runner.from_cfg(config).train()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_training_that_ends_before_its_rounds_says_so(by_epoch, data, tiny_sd, tmp_path, caplog):
    class Stop(Hook):  # as EarlyStoppingHook does
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            runner.train_loop.stop_training = runner.iter + 1 >= 6

    config = small_config(data, tiny_sd, tmp_path, by_epoch)
    start, interval = (1, 2) if by_epoch else (3, 4)
    config.custom_hooks[0].update(start=start, interval=interval)
    config.custom_hooks[0].search.update(steps=1)
    runner = Runner.from_cfg(config)
    runner.register_hook(Stop())
    runner.train()
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())
    assert summary['images'] == 4 and len(summary['rounds']) == 1
    missed = summary['rounds_missed']
    ended, due = ('2 of 5 epochs', 3) if by_epoch else ('6 of 10 iterations', 7)
    assert missed['count'] == 1
    assert (
        f'training ended after {ended}, before round 1, which was due after {due}: 1 of 2 rounds'
        in missed['why']
    )
    assert 'A hook has stopped training' in missed['why']
    assert missed['why'] in summary_table(summary)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_waiting_gradient_survives_a_resume(by_epoch, data, tiny_sd, tmp_path):
    """Three batches an epoch and a step every two: at the end of an epoch, one waits."""
    states = []
    for name in ('whole', 'resumed'):
        config = small_config(data, tiny_sd, tmp_path / name, by_epoch)
        config.optim_wrapper.accumulative_counts = 2
        config.custom_hooks[0].update(rounds=1)
        config.custom_hooks[0].search.update(steps=1)
        if by_epoch:
            config.train_cfg.max_epochs = 2
        else:
            config.train_cfg.max_iters = 5
        if name == 'resumed':  # from the end of the round
            shutil.copytree(tmp_path / 'whole' / 'gap', tmp_path / 'resumed' / 'gap')
            config.resume, config.load_from = True, str(tmp_path / 'whole' / 'gap_round.pth')
        runner = Runner.from_cfg(config)
        runner.train()
        states.append(runner.model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_round_whose_time_has_passed(data, tiny_sd, tmp_path):
    """A hook that is added to a run which goes on must not do nothing."""
    config = small_config(data, tiny_sd, tmp_path)
    hooks, config.custom_hooks = config.custom_hooks, []
    config.train_cfg.max_epochs = 2
    Runner.from_cfg(config).train()
    config.custom_hooks, config.resume = hooks, True
    config.train_cfg.max_epochs = 6
    with pytest.raises(ValueError, match='round 0 was due after 1 epochs, .* has done 2'):
        Runner.from_cfg(config).train()


def test_mix_inside_another_wrapper(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    mix = dict(type='mmgap.SyntheticMixDataset', dataset=config.train_dataloader.dataset)
    config.train_dataloader.dataset = dict(type='RepeatDataset', dataset=mix, times=2)
    config.train_cfg.max_epochs = 2
    config.custom_hooks[0].update(rounds=1)
    recorder = train(config)
    made = ['/gap/pool/' in path for path in recorder.epochs[1]]
    assert not any('/gap/pool/' in path for path in recorder.epochs[0])
    assert 0.2 < sum(made) / len(made) < 0.8
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[mix, mix])
    with pytest.raises(ValueError, match='2 SyntheticMixDatasets'):
        Runner.from_cfg(config).train()


def test_three_classes_with_flip(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    config.model.head.num_classes = 3
    with pytest.raises(ValueError, match="mode='flip' needs two classes, the model has 3"):
        Runner.from_cfg(config).train()


def test_training_data_without_masks(data, tiny_sd, tmp_path):
    config = small_config(data, tiny_sd, tmp_path)
    config.train_dataloader.dataset.with_masks = False
    with pytest.raises(ValueError, match="have no 'mask_path'"):
        Runner.from_cfg(config).train()
