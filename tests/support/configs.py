# SPDX-License-Identifier: Apache-2.0
"""The shipped configs with small numbers, on miniatures of their data."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from mmgap.configs import gap_hooks
from tests.support.miniature import draw_nyu, draw_taskonomy

ROOT = Path(__file__).parents[2]
RESNET = dict(base_channels=8, stem_channels=8, init_cfg=None, depth=18)
# What makes each depth model tiny; nothing else of it is changed.
TINY_DEPTH = {
    'ap_unet_taskonomy-depth': dict(
        backbone=dict(base_channels=4), decode_head=dict(in_channels=4, channels=4)
    ),
    'ap_dpt-vit-b16_nyu-depth': dict(
        backbone=dict(
            img_size=(32, 32),
            embed_dims=16,
            num_layers=4,
            num_heads=2,
            out_indices=(0, 1, 2, 3),
            init_cfg=None,
        ),
        decode_head=dict(
            in_channels=(16,) * 4,
            channels=8,
            embed_dims=16,
            post_process_channels=[4, 8, 16, 16],
        ),
    ),
    'ap_resnet50_nyu-depth': dict(
        backbone=RESNET, decode_head=dict(in_channels=[8, 16, 32, 64], channels=8)
    ),
    'gap_resnet18_toydepth': dict(
        backbone=dict(base_channels=8, stem_channels=8, init_cfg=None),
        decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
    ),
}


def classification_config(name: str, data: Path, weights: Path, work_dir: Path, **hook) -> Config:
    """A config with small numbers; nothing else is changed."""
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    config.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'model.backbone.init_cfg': None,
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
        }
    )
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.dataset.data_root = str(data)
        loader.update(num_workers=0, persistent_workers=False, batch_size=8)
    if 'num_samples' in config.train_dataloader.dataset:
        config.train_dataloader.dataset.num_samples = None
    if 'vit' in name:
        config.model.backbone.arch = dict(
            embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32
        )
        config.model.head.in_channels = 16
    (settings,) = gap_hooks(config)
    settings.generator.update(model=str(weights), size=16, negative_prompt='a b')
    for term in settings.feedback:
        if term.type == 'mmgap.ImageGuidance':
            term.images.data_root = str(data)
            term.update(clip=dict(model='mmgap://toybirds-clip'), limit=4)
        term.pop('start', None)
    settings.search.update(
        steps=2, prompts_per_class=1, images_per_prompt=2, batch_size=4, holdout=2
    )
    settings.synthesis.update(num_inference_steps=2)
    settings.update({**dict(start=1, budget=6), **hook})
    return config


def depth_config(
    name: str, folder: Path, weights: Path, controlnet: Path, file: str | None = None
) -> Config:
    """A config with small numbers and a drawn miniature of its data; ``file`` inherits from it."""
    config = Config.fromfile(ROOT / 'configs' / f'{file or name}.py')
    data = folder / 'data'
    if 'taskonomy' in name:
        draw_taskonomy(data, buildings=('allensville', 'collierville', 'ihlen'), views=4, size=48)
    elif 'nyu' in name:
        draw_nyu(data, size=(640, 480) if 'resnet' in name else (64, 48))
    config.merge_from_dict(
        {
            'work_dir': str(folder / 'work'),
            'model': TINY_DEPTH[name],
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
        }
    )
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        if 'data_root' in loader.dataset:
            loader.dataset.data_root = str(data)
        if 'buildings' in loader.dataset:
            loader.dataset.buildings = loader.dataset.buildings[:1]
        if name.endswith('toydepth'):
            loader.dataset.size = 8
    (settings,) = gap_hooks(config)
    settings.search.update(
        steps=2, prompts_per_class=2, images_per_prompt=2, batch_size=4, holdout=2
    )
    if not name.endswith('toydepth'):  # which has tiny weights anyway
        settings.search.update(tokens=[1, 8])
        settings.generator.update(
            model=str(weights), controlnet=str(controlnet), size=16, negative_prompt='a b'
        )
    settings.synthesis.update(num_inference_steps=2)
    settings.update(start=1, budget=6)
    return config
