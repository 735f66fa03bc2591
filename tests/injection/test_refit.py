# SPDX-License-Identifier: Apache-2.0
"""A refit against loops that are written out, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from torch.nn import functional

from mmgap.injection import InjectionSettings, Refit, keep_statistics, rate_note
from mmgap.injection.refit import _begin_anew
from mmgap.seeds import derive_rng, derive_seed, seeded
from tests.support.tiny import tiny_classifier, tiny_depth_model

pytestmark = pytest.mark.usefixtures('on_cpu')
MEAN, STD = (
    torch.tensor(v)[:, None, None] for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
)
SEED = 5


def classifier():
    """With statistics of batch normalisation unlike those of any batch."""
    model = tiny_classifier()
    rng = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith('running_var'):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=rng))
    return model


def refit_of(model, images, data, **settings) -> Refit:
    made = InjectionSettings(mode='refit', **settings)
    return Refit(model, images, data, made, seed=SEED)


def pixels(dataset, i: int, *seed) -> torch.Tensor:
    """A sample as the network sees it."""
    with seeded(derive_seed(SEED, 'refit', *seed)):
        sample = dataset[i]
    return (sample['inputs'].flip(0).float() - MEAN) / STD


def mean_loss(scores, labels, count: int, real: float) -> torch.Tensor:
    """Mean over images and, with its factor, over real samples."""
    each = functional.cross_entropy(scores, torch.tensor(labels), reduction='none')
    loss = each[:count].mean()
    return loss + real * each[count:].mean() if len(each) > count else loss


def labels_of(dataset, rows) -> list[int]:
    return [dataset.get_data_info(i)['gt_label'] for i in rows]


def run_by_hand(parameters, kind, steps, loss_of, **settings) -> list[float]:
    optimizer, losses = kind(list(parameters), **settings), []
    for step in range(steps):
        rate = settings['lr'] * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]['lr'] = rate
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_close(found, expected, atol: float) -> None:
    for name, value in expected.state_dict().items():
        other = found.state_dict()[name]
        assert torch.allclose(other.float(), value.float(), rtol=1e-4, atol=atol), name


def states(*models) -> list[dict]:
    return [copy.deepcopy(model.state_dict()) for model in models]


# What is fitted


@pytest.mark.parametrize('real_weight', [0.0, 0.3])
@pytest.mark.parametrize('reset', [False, True])
def test_last_layer_as_written_out(reset, real_weight, images, real):
    model = classifier().train()
    expected = copy.deepcopy(model).eval()
    with torch.no_grad():
        model.head.fc.weight.add_(0.1)
        expected.head.fc.weight.add_(0.1)
    settings = dict(reset=reset, real=real_weight, steps=30, batch_size=10)
    refit = refit_of(model, images, real, **settings)
    report = refit.run()

    order = derive_rng(SEED, 'refit', 'real').permutation(len(real))
    head = expected.head.fc
    if reset:
        with seeded(derive_seed(SEED, 'refit', 'last layer')):
            torch.nn.init.normal_(head.weight, 0, 0.01)
            torch.nn.init.zeros_(head.bias)

    def features(dataset, i, kind, view):
        with torch.no_grad():
            picture = pixels(dataset, i, kind, i, view)
            return expected.backbone(picture[None])[-1].mean(dim=(2, 3))[0]

    def loss_of(step):
        drawn, numbers, _ = refit.batches.draw(step)
        assert len(drawn) == 10 and len(numbers) == (5 if real_weight else 0)
        views = derive_rng(SEED, 'refit', step, 'view').integers(2, size=10)
        rows = [features(images, i, 'image', int(v)) for i, v in zip(drawn, views, strict=True)]
        shown = [int(order[number]) for number in numbers]
        rows += [features(real, i, 'real', 0) for i in shown]
        scores = torch.stack(rows) @ head.weight.T + head.bias
        return mean_loss(scores, labels_of(images, drawn) + labels_of(real, shown), 10, real_weight)

    losses = run_by_hand(head.parameters(), torch.optim.Adam, 30, loss_of, lr=0.01)
    assert (classifier().head.fc.weight - head.weight).abs().max() > 0.05
    assert_close(model, expected, 2e-4)
    assert report == dict(images=14, steps=30, loss=pytest.approx(np.mean(losses[-25:]), rel=1e-3))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize('norm_eval, real_weight', [(False, 0.0), (False, 0.3), (True, 0.3)])
def test_all_layers_as_written_out(norm_eval, real_weight, images, real):
    model = classifier().eval()
    expected, before = copy.deepcopy(model).train(), copy.deepcopy(model)
    if norm_eval:
        keep_statistics(expected)
    settings = dict(real=real_weight, norm_eval=norm_eval, steps=5, batch_size=8)
    refit = refit_of(model, images, real, layers='all', **settings)
    refit.run()

    def loss_of(step):
        drawn, shown, _ = refit.batches.draw(step)
        both = [(images, i) for i in drawn] + [(real, i) for i in shown]
        batch = [pixels(*one, step, place) for place, one in enumerate(both)]
        features = expected.backbone(torch.stack(batch))[-1].mean(dim=(2, 3))
        labels = labels_of(images, drawn) + labels_of(real, shown)
        return mean_loss(expected.head.fc(features), labels, 8, real_weight)

    run_by_hand(expected.parameters(), torch.optim.SGD, 5, loss_of, lr=2e-3, momentum=0.9)
    assert_close(model, expected, 1e-5)
    changed = [
        name
        for name, value in before.state_dict().items()
        if (value - model.state_dict()[name]).float().abs().max() > 1e-4
    ]
    assert 'backbone.conv1.weight' in changed and 'head.fc.weight' in changed
    assert any('running' in name for name in changed) != norm_eval


class Maps:
    """Pictures with depth, at hand."""

    metainfo: ClassVar[dict] = {}
    depth_unit = 1.0

    def __init__(self, count: int, far: float) -> None:
        self.rng = torch.Generator().manual_seed(int(far))
        self.pictures = 255 * torch.rand(count, 3, 32, 32, generator=self.rng)
        self.depth = far * (0.5 + torch.rand(count, 1, 32, 32, generator=self.rng))

    def __len__(self) -> int:
        return len(self.pictures)

    def fingerprint(self) -> str:
        return 'maps'

    def get_data_info(self, i: int) -> dict:
        return dict(img_path=str(i), prompt_id='q' if i == 2 else 'p')

    def __getitem__(self, i: int) -> dict:
        from mmseg.structures import SegDataSample

        sample = SegDataSample(gt_depth_map=PixelData(data=self.depth[i]))
        return dict(inputs=self.pictures[i], data_samples=sample)


@pytest.mark.parametrize(
    'given, reset, weight',
    [(dict(reset=False, real=0.2), False, 0.2), ({}, False, 1.0), (dict(reset=True), True, 1.0)],
)
def test_depth_as_written_out(given, reset, weight):
    """The last layer of a network whose features the whole network computes."""
    model, images, real = tiny_depth_model().train(), Maps(6, 3.0), Maps(4, 8.0)
    expected = copy.deepcopy(model).eval()
    settings = InjectionSettings(mode='refit', steps=6, batch_size=6, **given)
    refit = Refit(model, images, real, settings, label_type='depth', seed=SEED)
    refit.run()

    def loss_of(step):
        drawn, shown, _ = refit.batches.draw(step)
        seen = torch.cat([images.pictures[drawn], real.pictures[shown]]).flip(1)
        depth = torch.cat([images.depth[drawn], real.depth[shown]])
        told = expected.decode_head(expected.extract_feat((seen - 127.5) / 127.5))
        told = functional.interpolate(told, (32, 32), mode='bilinear')
        each = (told - depth).abs().mean(dim=(1, 2, 3))
        return each[:6].mean() + weight * each[6:].mean()

    last = expected.decode_head.conv_seg
    if reset:
        with seeded(derive_seed(SEED, 'refit', 'last layer')):
            last.reset_parameters()
    before = last.weight.detach().clone()
    run_by_hand(last.parameters(), torch.optim.Adam, 6, loss_of, lr=0.01)
    assert (before - last.weight).abs().max() > 0.02
    assert_close(model, expected, 2e-4)


def test_as_many_of_each_class_and_of_each_prompt(images, real):
    refit = refit_of(classifier(), images, real, batch_size=8, real=0.01)
    counts, shown = np.zeros(14), np.zeros(24)
    for step in range(400):
        drawn, others, weights = refit.batches.draw(step)
        assert sum(labels_of(images, drawn)) == 4
        assert weights == [1.5] * 8 + [pytest.approx(0.01 * 12 / 4)] * 4
        np.add.at(counts, drawn, 1)
        np.add.at(shown, others, 1)
    # eight images of one prompt and two of the other of a class, and four of the other class
    expected = np.array([100] * 8 + [400] * 2 + [400] * 4)
    assert np.abs(counts - expected).max() < 5 * 400**0.5
    assert np.abs(counts[:8].sum() - 800) < 5 * 400**0.5
    assert np.abs(shown - 1600 / 24).max() < 5 * (1600 / 24) ** 0.5
    odd = refit_of(classifier(), images, real, batch_size=7)
    ones = [sum(labels_of(images, odd.batches.draw(step)[0])) for step in range(200)]
    assert set(ones) == {3, 4} and np.mean(ones) == pytest.approx(3.5, abs=0.15)
    for_depth = refit_of(classifier(), Maps(6, 3.0), real, batch_size=8)
    few = [i == 2 for step in range(400) for i in for_depth.batches.draw(step)[0]]
    assert np.mean(few) == pytest.approx(0.5, abs=4 * 0.5 / 3200**0.5)


# Interrupted


@pytest.fixture
def kill(monkeypatch):
    """Count steps, and raise after so many as one sets."""
    counter = dict(steps=0, limit=math.inf)
    update = OptimWrapper.update_params

    def counted(self, loss, *args, **kwargs):
        if counter['steps'] >= counter['limit']:
            raise KeyboardInterrupt
        counter['steps'] += 1
        update(self, loss, *args, **kwargs)

    monkeypatch.setattr(OptimWrapper, 'update_params', counted)

    def at(limit=math.inf):
        counter.update(steps=0, limit=limit)
        return counter

    return at


@pytest.mark.parametrize('layers', ['last', 'all'])
def test_killed_and_resumed_equals_uninterrupted(layers, images, real, tmp_path, kill):
    settings = dict(layers=layers, steps=40, batch_size=4)
    path, other = tmp_path / 'refit' / 'end.safetensors', tmp_path / 'other.safetensors'

    def start():
        model = classifier()
        model.head.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), model.head.fc)
        return model

    whole = start()
    expected = refit_of(whole, images, real, **settings).run(other)

    def again(checkpoint, **changes):
        model, counter = start(), kill()
        report = refit_of(model, images, real, **{**settings, **changes}).run(checkpoint)
        return model, report, counter['steps']

    kill(31)
    with pytest.raises(KeyboardInterrupt):
        refit_of(start(), images, real, **settings).run(path)
    cut = path.read_bytes()
    for content, steps in ((cut, 15), (cut[:-100], 40), (b'nothing', 40)):
        path.write_bytes(content)
        model, report, taken = again(path)
        assert taken == steps and report == expected
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        if layers == 'all':
            break  # damage is met alike
    model, report, taken = again(path)  # it is over: weights and loss are read
    assert taken == 0 and report == expected
    assert torch.equal(model.head.fc[1].weight, whole.head.fc[1].weight)
    path.write_bytes(cut)
    assert again(path, batch_size=5)[2] == 40  # that of another refit


def test_a_checkpoint_of_another_refit_is_not_taken(images, real, tmp_path, kill):
    path, base = tmp_path / 'end.safetensors', classifier()
    fewer = copy.copy(images)
    fewer.budget, fewer._fully_initialized = 12, False
    fewer.full_init()
    redrawn = copy.copy(images)
    redrawn.fingerprint = lambda: 'of other pixels by the same names'

    def run(seed=SEED, some=images, shift=0.0, **changes):
        model, counter = copy.deepcopy(base), kill()
        model.backbone.conv1.weight.data[0, 0, 0, 0] += shift
        made = InjectionSettings(mode='refit', **{**dict(steps=2, batch_size=4), **changes})
        Refit(model, some, real, made, seed=seed).run(path)
        return counter['steps']

    for changes in (
        dict(seed=0),
        dict(some=fewer),
        dict(some=redrawn),
        dict(shift=1.0),
        dict(real=0.0),
    ):
        assert [run(), run(**changes), run(**changes)] == [2, 2, 0], changes


# What stays


@pytest.mark.parametrize('layers', ['last', 'all'])
def test_all_else_is_as_before(layers, images, real):
    """Modes, what is trained, gradients that wait for their step, and random numbers."""
    models = classifier().train(), classifier().train()
    for model in models:
        model.backbone.layer1.requires_grad_(False)
        keep_statistics(model.backbone.layer2)
        model.head.eval()
    for parameter in (models[0].head.fc.weight, models[0].backbone.conv1.weight):
        parameter.grad = torch.full_like(parameter, 3.0)

    def state(model):
        draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            draws,
        )

    before, (weights, _) = state(models[0]), states(*models)
    for model in models:
        refit_of(model, images, real, layers=layers, steps=3, batch_size=4).run()
    assert state(models[0]) == before
    after, other = states(*models)
    for name, value in after.items():
        assert torch.equal(value, other[name]), name  # the waiting gradient is of other samples
    changed = {name for name in weights if not torch.equal(weights[name], after[name])}
    last = {'head.fc.weight', 'head.fc.bias'}
    assert last <= changed and not any('layer1' in name and 'conv' in name for name in changed)
    assert (changed == last) == (layers == 'last')


def test_modes_are_as_before_after_an_error_too(images, real):
    model = classifier().train()
    model.head.fc.bias.data.fill_(float('nan'))
    with pytest.raises(ValueError, match='the loss of the refit is nan at step 0'):
        refit_of(model, images, real, reset=False, steps=3, batch_size=4).run()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# Settings


def test_name_of_the_last_layer(images, real):
    for name in ('fc.', 'head.fd'):
        with pytest.raises(
            ValueError, match=f"last_layer='{name}' names no parameter .* at its end"
        ):
            refit_of(classifier(), images, real, last_layer=name)
    models = classifier(), classifier()
    for model, name in zip(models, (None, 'head.fc.'), strict=True):
        settings = dict(last_layer=name, reset=False, steps=3, batch_size=4)
        refit_of(model, images, real, **settings).run()
    assert torch.equal(models[0].head.fc.weight, models[1].head.fc.weight)
    assert not torch.equal(models[0].head.fc.weight, classifier().head.fc.weight)


@pytest.mark.parametrize(
    'settings, label_type, frozen, rate, noted',
    [
        (dict(mode='refit'), 'classes', False, 1.0, True),
        (dict(mode='auto'), 'classes', False, 0.5, True),
        (dict(mode='refit'), 'classes', False, 0.1, False),
        (dict(mode='mix'), 'classes', False, 1.0, False),
        (dict(mode='refit'), 'depth', False, 1.0, False),
        (dict(mode='refit'), 'classes', True, 1.0, False),
        (dict(mode='refit', last_layer='head.other'), 'classes', True, 1.0, True),
    ],
)
def test_note_of_a_rate_at_which_images_are_learnt_by_heart(
    settings, label_type, frozen, rate, noted
):
    model = classifier()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith('head.'))
    note = rate_note(model, InjectionSettings(**settings), label_type, rate)
    assert (note is not None) == noted
    assert not noted or f'is still {rate:.0%} of' in note


def test_own_optimizer(images, real):
    model, expected = classifier(), classifier()
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    settings = dict(reset=False, steps=2, batch_size=4, optim_wrapper=wrapper)
    refit_of(model, images, real, **settings).run()
    assert torch.equal(model.head.fc.weight, expected.head.fc.weight)


def test_a_head_without_init_cfg_begins_anew_too():
    """As those of Swin and ConvNeXt."""
    head = classifier().head
    head.init_cfg = None
    torch.nn.init.constant_(head.fc.weight, 5.0)
    _begin_anew(head, 0)
    first = head.fc.weight.detach().clone()
    assert first.abs().max() < 1
    _begin_anew(head, 0)
    assert torch.equal(first, head.fc.weight)
