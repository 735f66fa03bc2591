# SPDX-License-Identifier: Apache-2.0
"""A small training config with a GAPHook, for tests that train for real."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

NORMALISE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def data_loader(data: Path, split: str, pipeline: list, workers: int) -> dict:
    return dict(
        batch_size=6,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(type='mmgap.Waterbirds', data_root=str(data), split=split, pipeline=pipeline),
    )


def small_config(
    data: Path, weights: Path, work_dir: Path, by_epoch: bool = True, workers: int = 0
) -> Config:
    """ResNet-18 with 8 channels on the Waterbirds miniature at 32 pixels."""
    load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32))]
    train = [*load, dict(type='RandomFlip', prob=0.5), dict(type='ColorJitter', brightness=0.4)]
    pack = dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group'))
    config = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmgap'], allow_failed_imports=False),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(num_classes=2, **NORMALISE),
            backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=2,
                in_channels=64,
                loss=dict(type='CrossEntropyLoss'),
                topk=(1,),
            ),
        ),
        train_dataloader=data_loader(data, 'train', [*train, dict(type='PackInputs')], workers),
        test_dataloader=data_loader(data, 'test', [*load, pack], workers),
        test_evaluator=[dict(type='mmgap.GroupAccuracy')],
        test_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=True, T_max=5),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook')
        ),
        randomness=dict(seed=3),
        work_dir=str(work_dir),
        custom_hooks=[
            dict(
                type='mmgap.GAPHook',
                generator=dict(type='mmgap.InpaintingGenerator', model=str(weights)),
                feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
                search=dict(
                    prompts_per_class=1,
                    tokens=2,
                    steps=3,
                    num_inference_steps=2,
                    images_per_prompt=2,
                    batch_size=8,
                    holdout=2,
                    checkpoint_interval=1,
                    optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
                ),
                synthesis=dict(num_inference_steps=2, batch_size=2),
                start=1,
                rounds=2,
                interval=2,
                budget=8,
            )
        ],
    )
    if not by_epoch:
        config['train_cfg'] = dict(by_epoch=False, max_iters=10)
        config['train_dataloader']['sampler'] = dict(type='InfiniteSampler', shuffle=True)
        config['param_scheduler'] = dict(type='CosineAnnealingLR', by_epoch=False, T_max=10)
        config['default_hooks']['checkpoint'].update(by_epoch=False, interval=2)
        config['custom_hooks'][0].update(start=3, interval=4)
    return Config(config)
