# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from mmgap.benchmark.training import (
    AutocastOptimWrapper,
    ChannelsLast,
    LastLayerOnly,
    base_config,
    cell_config,
    inject,
    is_by_epoch,
    measure,
)
from mmgap.injection import InjectionSettings


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.data_preprocessor = nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def test_the_last_layer_alone_learns():
    runner = SimpleNamespace(model=Net().train())
    hook = LastLayerOnly('head.1.')
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    learning = [name for name, p in runner.model.named_parameters() if p.requires_grad]
    assert learning == ['head.1.weight', 'head.1.bias']
    training = [name for name, module in runner.model.named_modules() if module.training]
    assert training == ['', 'data_preprocessor', 'head.1']
    before = runner.model.backbone[1].running_mean.clone()
    runner.model(torch.rand(2, 3, 4, 4)).sum().backward()
    assert torch.equal(runner.model.backbone[1].running_mean, before)
    with pytest.raises(ValueError, match="benchmark.last_layer='tail.' names no parameter"):
        LastLayerOnly('tail.').before_train(runner)


def test_precision_and_layout():
    net = Net()
    ChannelsLast().before_train(SimpleNamespace(model=net))
    assert net.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    wrapper = AutocastOptimWrapper(torch.optim.SGD(net.parameters(), 0.1), dtype='bfloat16')
    with wrapper.optim_context(net):
        assert net.backbone[0](torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16
    assert net.backbone[0](torch.rand(1, 3, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    'train_cfg, by_epoch',
    [
        (dict(max_epochs=1), True),
        (dict(by_epoch=False, max_iters=1), False),
        (dict(type='EpochBasedTrainLoop'), True),
        (dict(type='mmengine.IterBasedTrainLoop'), False),
        (dict(type=EpochBasedTrainLoop), True),
    ],
)
def test_base_models_count_as_their_config_does(train_cfg, by_epoch, birds):
    assert is_by_epoch(train_cfg) == by_epoch
    birds.train_cfg, birds.resume = train_cfg, True
    base = base_config(birds, seed=3, length=5)
    assert base.train_cfg == {'by_epoch': by_epoch, 'max_epochs' if by_epoch else 'max_iters': 5}
    assert base.randomness.seed == 3 and not base.custom_hooks and 'benchmark' not in base
    assert not base.resume and birds.resume  # else a cell would go on from its base's last step
    assert base.val_cfg is None and 'benchmark' in birds and birds.train_cfg == train_cfg


@pytest.mark.parametrize('prefix', ['head.', 'decode_head.conv_seg.'])
def test_all_methods_train_alike(prefix, birds, tmp_path):
    if prefix != 'head.':
        birds.benchmark.last_layer = prefix
    changes = {'train_dataloader.batch_size': 7}
    cells = {
        layers: cell_config(birds, 1, changes=changes, layers=layers, base=tmp_path / 'base.pth')
        for layers in ('last', 'all')
    }
    for layers, cell in cells.items():
        assert cell.train_cfg.max_iters == cell.param_scheduler.T_max == birds.benchmark.steps
        assert cell.optim_wrapper.type == 'AutocastOptimWrapper'
        assert cell.optim_wrapper.optimizer == birds.benchmark.optimizers[layers]
        assert cell.train_dataloader.batch_size == 7 and cell.model.backbone.norm_eval
        assert cell.load_from == str(tmp_path / 'base.pth')
    (layout,) = cells['all'].custom_hooks
    assert layout.type == 'ChannelsLast' and cells['last'].custom_hooks[0] == layout
    assert cells['last'].custom_hooks[1:] == [dict(type='LastLayerOnly', prefix=prefix)]


def test_a_refit_takes_its_steps_from_the_training(birds, tmp_path):
    steps = birds.benchmark.steps
    for mode, left in (('mix', steps), ('staged', steps), ('refit', steps - 20)):
        cell = cell_config(birds, 1, changes={}, layers='last', base=tmp_path / 'base.pth')
        settings = InjectionSettings(mode=mode, steps=20, layers='all')
        inject(cell, tmp_path, images=5, settings=settings)
        assert cell.train_cfg.max_iters == cell.param_scheduler.T_max == left
        hook = cell.custom_hooks[-1]
        assert hook['type'] == 'mmgap.InjectionHook' and hook['budget'] == 5
        assert hook['injection']['mode'] == mode and not hook['report']
        assert hook['injection']['optim_wrapper']['type'] == 'AutocastOptimWrapper'
    cell = cell_config(birds, 1, changes={}, layers='last', base=tmp_path / 'base.pth')
    with pytest.raises(ValueError, match=f'a refit of {steps} steps leaves nothing of the {steps}'):
        inject(cell, tmp_path, images=5, settings=InjectionSettings(mode='refit', steps=steps))


def test_depth_is_measured_in_two_ways():
    names = ('night/abs_rel', 'night/rmse', 'clear/rmse')
    metrics = {'group/night': 0.3, 'group/clear': 0.1, 'worst_group': 0.3, 'mean': 0.2}
    metrics = {f'abs_rel/{k}': v for k, v in metrics.items()} | dict.fromkeys(names, 1.5)
    report = measure(metrics | {'abs_rel': 0.2})
    assert report['abs_rel'] == dict(night=0.3, clear=0.1) and report['worst_group'] == 0.3
    assert report['rmse'] == dict(night=1.5, clear=1.5)
    assert 'rmse' not in measure({'worst_group': 0.3, 'group/a': 0.3})
