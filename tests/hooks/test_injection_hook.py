# SPDX-License-Identifier: Apache-2.0
"""How the images of a pool enter trainings, and what a refit at their end leaves."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.nn import functional

from mmgap.compat import allow_checkpoint_history, restart_workers
from mmgap.datasets import SyntheticMixDataset, Waterbirds
from mmgap.injection import InjectionSettings, Refit
from mmgap.loop import Loop
from mmgap.pool import SamplePool
from tests.support.commands import process_state
from tests.support.devices import see_no_gpu
from tests.support.pools import ABOUT
from tests.support.small_config import small_config

pytestmark = pytest.mark.usefixtures('on_cpu')
SOURCES = [0, 0, 1, 2, 5, 5, 7, 9, 11, 13, 15, 17]  # of eighteen
STEPS = 40  # of a refit, which saves itself after 25
LAST = {'head.fc.weight', 'head.fc.bias'}


class Inside(Hook):
    """Notes of each iteration the paths, the pixels and the ratio, and what is tested."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.paths, self.pixels, self.ratios, self.tested = [], [], [], None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.paths.append([sample.img_path for sample in data_batch['data_samples']])
        self.pixels.append(torch.stack(data_batch['inputs']).clone())
        self.ratios.append(runner.train_loop.dataloader.dataset.ratio)

    def before_test_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.tested = copy.deepcopy(runner.model.state_dict())

    @property
    def shares(self) -> list[float]:
        """Of generated images in each iteration."""
        return [np.mean(['/images/' in path for path in batch]) for batch in self.paths]


@pytest.fixture(scope='module')
def pool(tmp_path_factory, data) -> Path:
    """A pool of twelve images of noise, of their sources' classes."""
    real = Waterbirds(str(data), 'train')
    made, rng = SamplePool(tmp_path_factory.mktemp('pool')), np.random.default_rng(0)
    for i, source in enumerate(SOURCES):
        label = real.get_data_info(source)['gt_label']
        about = dict(ABOUT, label=label, source_index=source, seed=i, prompt_id=f'p{i % 3}')
        made.append(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), **about)
    return made.folder


def config_of(data, work_dir, pool, length=2, by_epoch=True, **injection) -> Config:
    config = small_config(data, Path('none'), work_dir, by_epoch)
    config.custom_hooks = [
        dict(type='mmgap.InjectionHook', pool=str(pool), injection=injection, report=False)
    ]
    config.train_cfg['max_epochs' if by_epoch else 'max_iters'] = length
    config.default_hooks.checkpoint.interval = 100
    return config


def train(config: Config, *hooks: Hook) -> tuple[Runner, Inside]:
    runner, inside = Runner.from_cfg(config), Inside()
    for hook in (inside, *hooks):
        runner.register_hook(hook)
    runner.train()
    return runner, inside


def by_hand(config: Config, epochs: int, **mix):
    """The batches of a training whose config names the mix."""
    dataset = SyntheticMixDataset(DATASETS.build(config.train_dataloader.dataset), **mix)
    loader = Runner.build_dataloader(dict(config.train_dataloader, dataset=dataset), seed=3)
    loader.dataset.seed = 3  # which is a copy
    for loader.dataset.epoch in range(epochs):
        loader.sampler.set_epoch(loader.dataset.epoch)
        yield from loader


# In training


def test_a_mix_is_that_of_the_dataset(data, tmp_path, pool):
    config = config_of(data, tmp_path, pool, mode='mix', ratio=0.4)
    config.custom_hooks[0].budget = 9
    _, inside = train(config)
    named = config_of(data, tmp_path / 'named', None)  # the mix says what the hook does not
    named.custom_hooks[0].update(pool=None, injection=dict(mode='mix'))
    named.train_dataloader.dataset = dict(
        type='mmgap.SyntheticMixDataset',
        dataset=named.train_dataloader.dataset,
        pool=str(pool),
        ratio=0.4,
        budget=9,
    )
    assert train(named)[1].paths == inside.paths
    batches = list(by_hand(config, 2, pool=str(pool), ratio=0.4, budget=9))
    assert len(batches) == len(inside.paths) == 6
    for batch, paths, pixels in zip(batches, inside.paths, inside.pixels, strict=True):
        assert [sample.img_path for sample in batch['data_samples']] == paths
        assert torch.equal(torch.stack(batch['inputs']), pixels)
    assert np.mean(inside.shares) == pytest.approx(0.4, abs=4 * (0.24 / 36) ** 0.5)
    assert not list(tmp_path.glob('gap_*.pth'))


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(
    'injection, epochs',
    [
        (dict(mode='staged'), [1, 1, 0, 0]),
        (dict(mode='staged', share=0.25, reverse=True), [0, 0, 0, 1]),
        (dict(ratio=[(0, 0), (0.25, 1), (0.5, 1), (0.75, 0)]), [0, 1, 1, 0]),
    ],
)
def test_a_course_over_training(by_epoch, injection, epochs, data, tmp_path, pool):
    length = 4 if by_epoch else 12
    config = config_of(data, tmp_path, pool, length, by_epoch, **injection)
    _, inside = train(config)
    if 'ratio' in injection and not by_epoch:  # between these, it goes up and down
        assert [inside.shares[i] for i in (0, 3, 4, 5, 6, 9, 10, 11)] == [0, 1, 1, 1, 1, 0, 0, 0]
        assert inside.ratios[7:9] == pytest.approx([2 / 3, 1 / 3])
    else:
        assert inside.shares == [share for share in epochs for _ in range(3)]


@pytest.mark.parametrize('by_epoch', [True, False])
def test_workers_see_a_change_at_once(by_epoch, data, tmp_path, pool):
    length = 2 if by_epoch else 6
    config = config_of(data, tmp_path, pool, length, by_epoch, mode='staged')
    config.train_dataloader.update(num_workers=1, persistent_workers=True, prefetch_factor=4)
    runner, inside = train(config)
    restart_workers(runner.train_loop.dataloader)  # they would end five seconds after they are gone
    runner.train_loop.dataloader_iterator = None
    assert inside.shares == [1] * 3 + [0] * 3


@pytest.mark.smoke
@pytest.mark.parametrize('seed', [3, None])
def test_a_course_by_iterations_is_the_same_in_a_run_that_is_resumed(seed, data, tmp_path, pool):
    """Also where the ratio is between two values of which workers are told; without a seed too."""
    insides = []
    for name in ('whole', 'resumed'):
        config = config_of(data, tmp_path / name, pool, 12, False, ratio=[(0, 0.2), (1, 0.6)])
        config.default_hooks.checkpoint.interval = 5
        config.randomness = dict(seed=seed)
        if name == 'resumed':
            config.resume, config.load_from = True, str(tmp_path / 'whole' / 'iter_5.pth')
        insides.append(train(config)[1])
    whole, resumed = insides
    assert len(set(whole.ratios)) > 4 and whole.ratios[-1] > 0.5
    assert resumed.ratios == whole.ratios[5:] and resumed.paths == whole.paths[5:]


def test_images_in_place_of_their_sources(data, tmp_path, pool):
    runs = [
        train(config_of(data, tmp_path, pool, 4, mode='replace', ratio=ratio))[1]
        for ratio in (0.0, 0.5)
    ]
    real = DATASETS.build(config_of(data, tmp_path, pool).train_dataloader.dataset)
    numbers = {real.get_data_info(i)['img_path']: i for i in range(18)}
    made = []
    for before, now in zip(sum(runs[0].paths, []), sum(runs[1].paths, []), strict=True):
        source = numbers[before]
        images = [str(pool / f'images/{i:06d}.png') for i, s in enumerate(SOURCES) if s == source]
        assert now in [before, *images]
        if images:
            made.append(now != before)
    assert len(made) == 40 and np.mean(made) == pytest.approx(0.5, abs=4 * 0.5 / 40**0.5)


def test_statistics_stay_while_there_are_images(data, tmp_path, pool):
    class Statistics(Hook):
        def __init__(self) -> None:
            self.found = []

        def before_train_epoch(self, runner) -> None:
            self.note(runner)

        def after_train(self, runner) -> None:
            self.note(runner)

        def note(self, runner) -> None:
            buffers = runner.model.named_buffers()
            self.found.append({name: value.clone() for name, value in buffers})

    noted = Statistics()
    train(config_of(data, tmp_path, pool, mode='staged', norm_eval=True), noted)
    first, after_images, after_real = noted.found
    assert all(torch.equal(value, first[name]) for name, value in after_images.items())
    assert not any(
        torch.equal(value, first[name])
        for name, value in after_real.items()
        if 'running_mean' in name
    )


def test_weight_of_generated_samples_in_the_loss(data, tmp_path, pool):
    class Losses(Hook):
        priority = 'VERY_HIGH'

        def __init__(self) -> None:
            self.pairs = []

        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            model, samples = copy.deepcopy(runner.model), data_batch['data_samples']
            with torch.no_grad():
                seen = model.data_preprocessor(copy.deepcopy(data_batch), True)['inputs']
                scores = model.head.fc(model.backbone(seen)[-1].mean(dim=(2, 3)))
            labels = torch.cat([sample.gt_label for sample in samples])
            each = functional.cross_entropy(scores, labels, reduction='none')
            made = torch.tensor(['/images/' in sample.img_path for sample in samples])
            weighted = torch.where(made, 3.0, 1.0) * each
            self.pairs.append((float(weighted.mean()), float(each.mean())))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            expected, plain = self.pairs[-1]
            assert float(outputs['loss']) == pytest.approx(expected, rel=1e-4)

    noted = Losses()
    runner, _ = train(config_of(data, tmp_path, pool, 1, ratio=0.5, weight=3.0), noted)
    assert len(noted.pairs) == 3
    assert any(abs(expected - plain) > 0.1 for expected, plain in noted.pairs)
    assert not any(module._forward_pre_hooks for module in runner.model.modules())


def test_a_weight_needs_to_know_where_samples_are_from(data, tmp_path, pool):
    config = config_of(data, tmp_path, pool, weight=3.0)
    config.train_dataloader.dataset.pipeline[-1].meta_keys = ('sample_idx',)
    with pytest.raises(ValueError, match="injection weight needs 'img_path' among the meta_keys"):
        Runner.from_cfg(config).train()


def test_a_pool_that_is_not_there(data, tmp_path):
    """It must not train on real samples as if there were nothing else to do."""
    with pytest.raises(FileNotFoundError, match=r"pool='.*nowhere' has no samples"):
        train(config_of(data, tmp_path, tmp_path / 'nowhere'))


@pytest.mark.parametrize('threshold, mode', [(0.0, 'refit'), (1.1, 'mix')])
def test_auto_goes_on_in_the_mode_that_it_finds(threshold, mode, data, tmp_path, pool, monkeypatch):
    monkeypatch.setattr('mmgap.injection.judge.SEPARABLE', threshold)
    config = config_of(data, tmp_path, pool, 1, mode='auto', ratio=1.0, steps=2)
    config.custom_hooks[0].report = True
    _, inside = train(config)
    summary = json.loads((tmp_path / 'gap' / 'summary.json').read_text())['injection']
    assert inside.shares == [1, 1, 1]
    assert summary['mode'] == mode and 0 <= summary['generated'] <= 1
    assert (tmp_path / 'gap_refit.pth').exists() == (mode == 'refit') == bool(summary['refit'])


# Refit


@pytest.mark.parametrize(
    'schedule, mode, noted',
    [
        (None, 'refit', True),
        (None, 'mix', False),
        (dict(type='MultiStepLR', milestones=[1], gamma=0.1), 'refit', False),
    ],
)
def test_a_refit_notes_a_rate_that_does_not_fall(schedule, mode, noted, data, tmp_path, pool):
    config = config_of(data, tmp_path, pool, 1, mode=mode, steps=1)
    config.param_scheduler = schedule
    config.experiment_name = tmp_path.name  # two of one second would share a log
    train(config)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert ('the learning rate is still 100% of what training begins with' in log) == noted


def refit_config(data, work_dir, pool, ema: bool) -> Config:
    config = config_of(
        data, work_dir, pool, mode='refit', ratio=0.0, steps=STEPS, batch_size=8, real=0.1
    )
    config.custom_hooks[0].report = True
    if ema:
        config.custom_hooks.append(dict(type=EMAHook, momentum=0.2))
    return config


@dataclass(frozen=True)
class Refitted:
    ema: bool
    work_dir: Path
    runner: Runner
    inside: Inside

    def checkpoint(self, name: str) -> dict:
        allow_checkpoint_history()
        return torch.load(self.work_dir / name, weights_only=True)


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'averaged'])
def refitted(request, data, tmp_path_factory, pool) -> Refitted:
    """A training that was not interrupted."""
    work_dir = tmp_path_factory.mktemp('refitted')
    with pytest.MonkeyPatch.context() as patch, process_state():
        see_no_gpu(patch)
        trained = train(refit_config(data, work_dir, pool, request.param))
    return Refitted(request.param, work_dir, *trained)


def test_a_refit_at_the_end(refitted, pool):
    before, after = (refitted.checkpoint(f'gap_{name}.pth') for name in ('trained', 'refit'))
    weights = before['state_dict']
    changed = {k for k, v in weights.items() if not torch.equal(v, after['state_dict'][k])}
    assert changed == LAST
    last = (refitted.work_dir / 'last_checkpoint').read_text()
    assert last == str(refitted.work_dir / 'gap_refit.pth')
    assert refitted.inside.shares == [0] * 6
    for name, value in refitted.inside.tested.items():
        assert torch.equal(value, after['state_dict'][name]), name
    if refitted.ema:  # what was trained is something else
        trained = before['ema_state_dict']['module.head.fc.weight']
        assert not torch.allclose(trained, weights['head.fc.weight'], atol=1e-4)

    model, mix = refitted.runner.model, refitted.runner.train_loop.dataloader.dataset
    settings = InjectionSettings(mode='refit', steps=STEPS, batch_size=8, real=0.1)
    model.load_state_dict(weights)
    report = Refit(model, mix.generated, mix.dataset, settings, seed=3).run()
    for name, value in model.state_dict().items():
        assert torch.equal(value, after['state_dict'][name]), name

    summary = json.loads((refitted.work_dir / 'gap' / 'summary.json').read_text())
    about = summary['injection']
    assert about['mode'] == 'refit' and about['refit'] == report
    assert 0 <= about['generated'] <= 1 and 0 <= about['control'] <= 1
    assert 'linear probe tells generated from real images' in about['why']
    assert summary['images'] == len(SOURCES) and summary['seconds']['injection'] > 0


def test_after_of_the_summary_is_what_the_checkpoint_does(refitted, data, pool, tmp_path):
    config = refit_config(data, tmp_path, pool, False)
    config.custom_hooks, config.load_from = [], str(refitted.work_dir / 'gap_refit.pth')
    metrics = Runner.from_cfg(config).test()
    summary = json.loads((refitted.work_dir / 'gap' / 'summary.json').read_text())
    assert summary['after']['metrics'] == pytest.approx(metrics)


def test_resumed_after_its_end_it_does_not_refit_again(refitted, data, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(Refit, 'run', lambda *args: pytest.fail('a second refit'))
    shutil.copytree(refitted.work_dir, tmp_path / 'again')
    (tmp_path / 'again' / 'last_checkpoint').unlink()
    config = refit_config(data, tmp_path / 'again', pool, refitted.ema)
    config.resume, config.load_from = True, str(tmp_path / 'again' / 'gap_refit.pth')
    _, inside = train(config)
    assert inside.paths == []
    for name, value in refitted.inside.tested.items():
        assert torch.equal(value, inside.tested[name]), name
    summaries = [
        json.loads((folder / 'gap' / 'summary.json').read_text())
        for folder in (refitted.work_dir, tmp_path / 'again')
    ]
    for key in ('after', 'injection', 'images', 'seed'):
        assert summaries[0][key] == summaries[1][key]


@pytest.mark.parametrize('ema', [False, True])
def test_training_that_goes_on_takes_its_refit_back(ema, data, pool, tmp_path):
    for name, lengths in dict(whole=[2], longer=[1, 2]).items():
        for length in lengths:
            config = refit_config(data, tmp_path / name, pool, ema)
            config.train_cfg.max_epochs = length
            config.param_scheduler = None  # MMEngine's would keep the end that it had
            config.resume = len(lengths) == length
            train(config)
    allow_checkpoint_history()
    for name in ('gap_trained.pth', 'gap_refit.pth'):
        whole, longer = (
            torch.load(tmp_path / run / name, weights_only=True)['state_dict']
            for run in ('whole', 'longer')
        )
        for key, value in whole.items():
            assert torch.equal(value, longer[key]), key


def test_killed_in_the_refit_and_resumed_equals_uninterrupted(
    refitted, data, pool, tmp_path, monkeypatch
):
    update, taken, limit = OptimWrapper.update_params, [], [6 + 30]

    def counted(self, *args, **kwargs):
        if len(taken) >= limit[0]:
            raise KeyboardInterrupt
        taken.append(1)
        update(self, *args, **kwargs)

    monkeypatch.setattr(OptimWrapper, 'update_params', counted)
    config = refit_config(data, tmp_path, pool, refitted.ema)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('gap_trained.pth')
    assert not (tmp_path / 'gap_refit.pth').exists()
    limit[0] = math.inf
    config.resume = True
    _, inside = train(config)
    assert len(taken) == 6 + 30 + STEPS - 25
    for name, value in refitted.inside.tested.items():
        assert torch.equal(value, inside.tested[name]), name
    whole = refitted.checkpoint('gap_refit.pth')
    allow_checkpoint_history()
    resumed = torch.load(tmp_path / 'gap_refit.pth', weights_only=True)
    for part in ('state_dict', *(['ema_state_dict'] if refitted.ema else [])):
        for name, value in whole[part].items():
            assert torch.equal(value, resumed[part][name]), name
    assert resumed['mmgap']['state'] == whole['mmgap']['state']


# With GAPHook


def test_stages_begin_with_the_first_images(data, tiny_sd, tmp_path):
    """Images alone for the first half of what is left; the same in a run that is resumed."""
    insides = []
    for name in ('whole', 'resumed'):
        config = small_config(data, tiny_sd, tmp_path / name, by_epoch=False)
        config.default_hooks.checkpoint.interval = 100
        hook = config.custom_hooks[0]
        hook.update(rounds=1, budget=4, injection=dict(mode='staged'))
        hook.search.update(steps=1)
        if name == 'resumed':
            shutil.copytree(tmp_path / 'whole' / 'gap', tmp_path / 'resumed' / 'gap')
            config.resume, config.load_from = True, str(tmp_path / 'whole' / 'gap_round.pth')
        insides.append(train(config)[1])
    assert insides[0].shares == [0] * 3 + [1] * 4 + [0] * 3
    assert len(insides[1].pixels) == 7
    assert all(map(torch.equal, insides[1].pixels, insides[0].pixels[3:]))


def test_a_search_meets_the_repaired_model(data, tiny_sd, tmp_path, monkeypatch):
    """And training goes on with the model as it was."""
    config = small_config(data, tiny_sd, tmp_path)
    config.train_cfg.max_epochs = 3
    hook = config.custom_hooks[0]
    hook.update(rounds=2, interval=1, budget=4)
    hook.injection = dict(mode='refit', ratio=0.0, steps=10, batch_size=8)
    hook.search.update(steps=1)
    runner, noted = Runner.from_cfg(config), []

    def note(when: str) -> None:
        noted.append((when, copy.deepcopy(runner.model.state_dict())))

    class Around(Hook):
        priority = 'VERY_LOW'

        def after_train_epoch(self, runner) -> None:
            note('before')

        def before_train_epoch(self, runner) -> None:
            note('after')

    run = Loop.run

    def spied(self, *args, **kwargs):
        note('during')
        report = run(self, *args, **kwargs)
        note('during')
        return report

    monkeypatch.setattr(Loop, 'run', spied)
    runner.register_hook(Around())
    runner.train()
    kinds = [when for when, _ in noted]
    assert kinds == ['after', *['before', 'during', 'during', 'after'] * 2, 'before']

    def differ(first: int, second: int) -> set[str]:
        one, other = noted[first][1], noted[second][1]
        return {name for name in one if not torch.equal(one[name], other[name])}

    assert differ(1, 2) == differ(2, 3) == differ(3, 4) == set()  # no images yet
    assert differ(5, 6) == LAST and differ(6, 7) == differ(5, 8) == set()
    assert (tmp_path / 'gap' / 'refit' / 'round_1.safetensors').exists()
    trained, last = (
        torch.load(tmp_path / f'gap_{name}.pth', weights_only=True)['state_dict']
        for name in ('trained', 'refit')
    )
    assert all(torch.equal(trained[name], noted[-1][1][name]) for name in trained)
    assert {name for name in last if not torch.equal(last[name], trained[name])} == LAST
