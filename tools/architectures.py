#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Which models can be targets: walk the toolboxes' architectures and write a table.

Of every classifier architecture in MMPretrain's model list, the variant with the fewest parameters
is built without weights and asked for its loss on two images at its own input size; so are
TimmClassifier and HuggingFaceClassifier, and every backbone of MMSegmentation under a depth head.
A model passes if the gradient to the images is finite and not zero: all that feedback needs of it.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn
from tqdm import tqdm

from mmgap.compat import allow_mmcv_without_ops
from mmgap.files import write_bytes
from mmgap.targets import DepthTarget, TargetModel
from mmgap.weights import without_pretrained

FAULTS = (ValueError, TypeError, LookupError, RuntimeError, ImportError, AssertionError)
PIXELS = 64  # of depth, where a backbone has no size of its own

RESNET = dict(type='mmseg.ResNetV1c', depth=18, norm_eval=False)
STAGE = dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(8,))
# What MMSegmentation's backbones cannot be built without; the others get nothing.
BACKBONES: dict[str, dict[str, Any]] = dict(
    ResNet=dict(depth=18),
    ResNetV1c=dict(depth=18),
    ResNetV1d=dict(depth=18),
    ResNeXt=dict(depth=50),
    ResNeSt=dict(depth=50),
    HRNet=dict(
        extra=dict(
            stage1=STAGE,
            stage2=dict(
                STAGE, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(8, 16)
            ),
            stage3=dict(
                STAGE, num_branches=3, block='BASIC', num_blocks=(1,) * 3, num_channels=(8, 16, 32)
            ),
            stage4=dict(
                STAGE,
                num_branches=4,
                block='BASIC',
                num_blocks=(1,) * 4,
                num_channels=(8, 16, 32, 64),
            ),
        )
    ),
    VisionTransformer=dict(img_size=PIXELS, embed_dims=32, num_layers=2, num_heads=2),
    BEiT=dict(
        img_size=PIXELS, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,), init_values=0.1
    ),
    MAE=dict(
        img_size=PIXELS, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,), init_values=0.1
    ),
    PCPVT=dict(
        embed_dims=[16, 32, 64, 64],
        num_heads=[1, 2, 4, 4],
        mlp_ratios=[2] * 4,
        depths=[1] * 4,
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
    ),
    SVT=dict(
        embed_dims=[16, 32, 64, 64],
        num_heads=[1, 2, 4, 4],
        mlp_ratios=[2] * 4,
        depths=[1] * 4,
        sr_ratios=[8, 4, 2, 1],
        windiow_sizes=[7] * 4,  # spelled so by MMSegmentation
        out_indices=(0, 1, 2, 3),
    ),
    BiSeNetV1=dict(backbone_cfg=dict(RESNET, out_indices=(0, 1, 2, 3))),
    ICNet=dict(
        backbone_cfg=dict(RESNET, out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4)),
        layer_channels=(128, 512),
    ),
    TIMMBackbone=dict(model_name='resnet18', features_only=True, pretrained=False),
    STDCNet=dict(
        stdc_type='STDCNet1',
        in_channels=3,
        channels=(32, 64, 256, 512, 1024),
        bottleneck_type='cat',
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    ),
    MSCAN=dict(
        embed_dims=[16, 32, 64, 64],
        mlp_ratios=[2] * 4,
        depths=[1] * 4,
        norm_cfg=dict(type='BN'),
    ),
)
BACKBONES['STDCContextPathNet'] = dict(
    backbone_cfg=dict(type='STDCNet', with_final_conv=False, **BACKBONES['STDCNet']),
    ffm_cfg=dict(in_channels=384, out_channels=256, scale_factor=4),
)


def smallest_variants() -> dict[str, str]:
    """By classifier architecture, the name of the variant with the fewest parameters."""
    from mmpretrain.apis.model import ModelHub, list_models

    variants = defaultdict(list)
    for name in tqdm(list_models(task='Image Classification'), desc='sizes of the variants'):
        meta = ModelHub._models_dict[name.lower()]
        data = meta.metadata.data if meta.metadata else {}
        # A few of the metafiles' own counts are wrong, and some have none.
        size = number_of_parameters(name) or data.get('Parameters') or math.inf
        variants[meta.in_collection].append((size, name))
    return {architecture: min(found)[1] for architecture, found in sorted(variants.items())}


def number_of_parameters(name: str) -> int | None:
    """Parameters of a zoo config's model, which takes no memory; None if it wants some."""
    from mmpretrain.registry import MODELS

    try:
        with torch.device('meta'):
            model = MODELS.build(zoo_model(zoo_config(name)))
    except FAULTS:
        return None
    return sum(p.numel() for p in model.parameters())


def zoo_config(name: str) -> Config:
    """A config of MMPretrain's model list."""
    from mmpretrain.apis.model import ModelHub

    init_default_scope('mmpretrain')
    # As ModelHub.get does it, but RepLKNet's base has an import, which is taken for another syntax.
    ModelHub._register_mmpretrain_models()
    return Config.fromfile(ModelHub._models_dict[name.lower()].config, lazy_import=False)


def zoo_model(config: Config) -> Any:
    """Its model without weights to load."""
    settings = without_pretrained(copy.deepcopy(config.model))
    if config.get('data_preprocessor') and not settings.get('data_preprocessor'):
        settings.data_preprocessor = copy.deepcopy(config.data_preprocessor)
    return settings


def classifier(name: str) -> TargetModel:
    """A target out of a zoo config, without weights."""
    from mmpretrain.registry import MODELS

    config = zoo_config(name)
    model = MODELS.build(zoo_model(config))
    model.init_weights()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            # A fresh ViT head is all zeros and passes nothing on; after a training step it is not.
            nn.init.normal_(parameter, std=0.02)
    dataset = config.test_dataloader.dataset
    if dataset.type.startswith('CIFAR'):  # it holds images of one size, which nothing loads
        return TargetModel(model, (32, 32))
    return TargetModel.from_pipeline(model, dataset.pipeline)


def timm_classifier() -> TargetModel:
    """The smallest common model of timm."""
    from mmpretrain.models import TimmClassifier

    init_default_scope('mmpretrain')
    model = TimmClassifier('resnet18', pretrained=False, data_preprocessor=dict(to_rgb=True))
    return TargetModel(model, (224, 224))


def hugging_face_classifier() -> TargetModel:
    """A small ResNet of transformers, by a config in a folder."""
    from mmpretrain.models import HuggingFaceClassifier
    from transformers import ResNetConfig

    init_default_scope('mmpretrain')
    settings = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
    with tempfile.TemporaryDirectory() as folder:
        settings.save_pretrained(folder)
        model = HuggingFaceClassifier(folder, pretrained=False, data_preprocessor=dict(to_rgb=True))
    return TargetModel(model, (64, 64))


def depth_model(name: str) -> DepthTarget:
    """A backbone of MMSegmentation under ``mmgap.ConvDepthHead``."""
    from mmseg.registry import MODELS

    import mmgap.models  # noqa: F401

    init_default_scope('mmseg')

    backbone = dict(type=f'mmseg.{name}', **copy.deepcopy(BACKBONES.get(name, {})))
    network = MODELS.build(copy.deepcopy(backbone))
    training, maps = (
        features(network.train(mode) or network) for mode in (True, False)
    )  # some return nothing from train
    if isinstance(maps, torch.Tensor) or len(training) != len(maps):
        raise ValueError('other features in training than at test, which only its own head takes')
    model = MODELS.build(
        dict(
            type='DepthEstimator',
            data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True, std=[58.0] * 3)
            | dict(mean=[120.0] * 3),
            backbone=backbone,
            decode_head=dict(
                type='mmgap.ConvDepthHead',
                in_channels=[each.shape[1] for each in maps],
                in_index=list(range(len(maps))),
                input_transform='resize_concat',
                channels=8,
                max_depth=10.0,
                norm_cfg=dict(type='BN'),
                loss_decode=dict(type='mmgap.MaskedL1Loss'),
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )
    model.init_weights()
    return DepthTarget(model, (PIXELS, PIXELS))


def features(network: nn.Module) -> Any:
    """What a backbone makes of two empty images."""
    with torch.no_grad():
        return network(torch.zeros(2, 3, PIXELS, PIXELS))


def depth_backbones() -> list[str]:
    """What MMSegmentation exports."""
    from mmseg.models import backbones

    return sorted(backbones.__all__)


def evaluate(build: Callable[[], TargetModel]) -> dict[str, Any]:
    """Build a target, and look at the gradient that it gives to two images.

    Returns:
        ``passes``, ``why`` not, ``model`` (class), ``size`` (pixels), ``parameters`` (millions) and
        ``seconds`` of loss and gradient.
    """
    torch.manual_seed(0)
    try:
        target = build()
        size = target.input_size
        images = torch.rand(2, 3, *size, requires_grad=True)
        depth = isinstance(target, DepthTarget)
        truth = 1 + 8 * torch.rand(2, 1, *size) if depth else torch.tensor([0, 1])
        began = time.time()
        with target.frozen():
            loss = target(images, truth).loss
            (gradient,) = torch.autograd.grad(loss.sum(), images)
        seconds = time.time() - began
    except FAULTS as error:
        return dict(passes=False, why=f'{type(error).__name__}: {error}')
    why = None
    if not torch.isfinite(gradient).all():
        why = 'the gradient is not finite'
    elif not (gradient.flatten(1).abs().amax(dim=1) > 0).all():
        why = 'the gradient is zero'
    return dict(
        passes=why is None,
        why=why,
        model=name_of(target.model),
        size=f'{size[0]}x{size[1]}',
        parameters=sum(p.numel() for p in target.model.parameters()) / 1e6,
        seconds=seconds,
    )


def name_of(model: nn.Module) -> str:
    part = getattr(model, 'backbone', model)
    return type(part).__name__


def candidates() -> dict[str, dict[str, Callable[[], TargetModel]]]:
    """By section of the table and row, how to build it."""
    zoo = {
        f'{architecture} (`{name}`)': lambda name=name: classifier(name)
        for architecture, name in smallest_variants().items()
    }
    wrappers = dict(TimmClassifier=timm_classifier, HuggingFaceClassifier=hugging_face_classifier)
    depth = {name: lambda name=name: depth_model(name) for name in depth_backbones()}
    return {
        "Classifiers of MMPretrain's model list": zoo,
        'Wrappers of other libraries': wrappers,
        "MMSegmentation's backbones under `mmgap.ConvDepthHead`": depth,
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The results in Markdown."""
    lines = [
        '# Which models can be targets',
        '',
        'Written by `python tools/architectures.py --out docs/results/architectures.md`. Of each',
        'architecture the variant with the fewest parameters, without weights; a model passes if',
        'its loss gives two images a finite gradient that is not zero.',
    ]
    for section, rows in results.items():
        passed = sum(row['passes'] for row in rows.values())
        lines += ['', f'## {section}: {passed} of {len(rows)}', '']
        lines += [
            '| architecture | model | M parameters | pixels | passes |',
            '|---|---|---|---|---|',
        ]
        for name, row in rows.items():
            facts = ['', '', '']
            if 'model' in row:
                facts = [row['model'], f'{row["parameters"]:.1f}', row['size']]
            verdict = 'yes' if row['passes'] else 'no: ' + ' '.join(row['why'].split())[:200]
            lines.append(f'| {name} | {" | ".join(facts)} | {verdict} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Walk all, or those whose name contains one of some words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='Markdown file')
    parser.add_argument('--only', nargs='+', default=[''], help='words that names contain')
    args = parser.parse_args()
    MMLogger.get_instance('mmgap', log_level='ERROR')
    allow_mmcv_without_ops()
    results = {
        section: {
            name: evaluate(build)
            for name, build in tqdm(rows.items(), desc=section)
            if any(word.lower() in name.lower() for word in args.only)
        }
        for section, rows in candidates().items()
    }
    write_bytes(
        args.out, table({section: rows for section, rows in results.items() if rows}).encode()
    )
    failed = [name for rows in results.values() for name, row in rows.items() if not row['passes']]
    print(f'{len(failed)} do not pass: {failed}')


if __name__ == '__main__':
    main()
