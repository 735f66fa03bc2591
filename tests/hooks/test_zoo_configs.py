# SPDX-License-Identifier: Apache-2.0
"""Stock zoo configs plus ``custom_imports`` and one hook, changed in data and number of classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests.support.miniature import draw_waterbirds
from tests.support.small_config import small_config


def slow(*values: object) -> object:
    # 10 to 20 s: whole networks on the CPU, of which a ResNet and a ViT go without asking
    return pytest.param(*values, marks=pytest.mark.slow)


CHILD = """
_base_ = 'mmpretrain::{base}.py'
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)
custom_hooks = [{hook!r}]
model = dict(head=dict(num_classes=2, topk=(1,)))
data_preprocessor = dict(num_classes=2)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='mmgap.Waterbirds', data_root={data!r}, split='train',
                 pipeline={{{{_base_.train_pipeline}}}}))
val_dataloader = None
val_cfg = None
val_evaluator = None
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
test_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='mmgap.Waterbirds', data_root={data!r}, split='test',
                 pipeline=test_pipeline))
test_evaluator = dict(_delete_=True, type='mmgap.GroupAccuracy')
randomness = dict(seed=0)
work_dir = {work_dir!r}
"""


@pytest.mark.parametrize(
    ('base', 'backbone', 'by_epoch'),
    [
        ('resnet/resnet18_8xb32_in1k', 'ResNet', True),
        ('deit/deit-tiny_4xb256_in1k', 'VisionTransformer', False),
        slow('swin_transformer/swin-tiny_16xb64_in1k', 'SwinTransformer', True),
        slow('swin_transformer/swin-tiny_16xb64_in1k', 'SwinTransformer', False),
        slow('convnext/convnext-tiny_32xb128_in1k', 'ConvNeXt', True),
    ],
)
def test_trains_with_the_hook_added(base, backbone, by_epoch, tmp_path, tiny_sd):
    data = draw_waterbirds(tmp_path / 'data', per_group=2)
    small = small_config(data, tiny_sd, tmp_path)
    hook = small.custom_hooks[0].to_dict()
    hook.update(start=1, rounds=1, budget=4)
    hook['search'].update(steps=1, prompts_per_class=1)
    child = CHILD.format(base=base, hook=hook, data=str(data), work_dir=str(tmp_path / 'work'))
    (tmp_path / 'child.py').write_text(child)
    config = Config.fromfile(tmp_path / 'child.py')
    if by_epoch:
        config.train_cfg.max_epochs = 2
        if isinstance(config.param_scheduler, list):
            config.param_scheduler = None  # warms up for 20 epochs, more than there are here
    else:
        config.train_cfg = dict(by_epoch=False, max_iters=3)
        config.param_scheduler = None
        config.default_hooks.checkpoint.update(by_epoch=False)
    runner = Runner.from_cfg(config)
    runner.train()
    assert type(runner.model.backbone).__name__ == backbone
    summary = json.loads((tmp_path / 'work' / 'gap' / 'summary.json').read_text())
    assert summary['images'] == 4 and len(summary['rounds'][0]['prompts']) == 2
    assert summary['before']['mean'] is not None and summary['after']['mean'] is not None
    (mix,) = [runner.train_loop.dataloader.dataset]
    assert mix.num_synthetic == 4 and len(mix) == len(mix.dataset)


@pytest.mark.slow  # 20 s: a process, which imports everything
def test_own_tool_of_mmpretrain_trains_with_the_hook(tmp_path, tiny_sd):
    tool = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not tool.exists():
        pytest.skip('this installation of MMPretrain comes without its tools')
    config = small_config(draw_waterbirds(tmp_path / 'data', per_group=2), tiny_sd, tmp_path)
    config.train_cfg.max_epochs = 2
    config.custom_hooks[0].update(rounds=1, budget=4)
    config.dump(tmp_path / 'config.py')
    subprocess.run(
        [sys.executable, str(tool), str(tmp_path / 'config.py')],
        check=True,
        timeout=240,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])),
    )
    assert json.loads((tmp_path / 'gap' / 'summary.json').read_text())['images'] == 4
