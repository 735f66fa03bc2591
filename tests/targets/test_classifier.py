# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from mmpretrain.structures import DataSample
from PIL import Image
from torch import nn

from mmgap.targets import TargetModel, build_target
from tests.support.tiny import tiny_classifier

pytestmark = pytest.mark.smoke

CONFIGS = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / '_base_' / 'datasets'


def draw(count=4, size=32):
    """Images as the target gets them, and as a BGR pipeline would hand them to the model."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    bgr = [torch.from_numpy(p[..., ::-1].copy()).permute(2, 0, 1) for p in pixels]
    return images, bgr, torch.from_numpy(rng.integers(0, 2, count))


def stock_loss(model, bgr, labels):
    """The model's own loss of a batch, in eval mode."""
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    with torch.no_grad():
        data = model.data_preprocessor(dict(inputs=bgr, data_samples=samples), False)
        return model.eval()(**data, mode='loss')['loss']


def everything_about(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
    )


def assert_unchanged(model, before):
    state, *rest = everything_about(model)
    assert rest == list(before[1:])
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='CrossEntropyLoss', loss_weight=1.0),
        dict(type='CrossEntropyLoss', loss_weight=0.5, class_weight=[0.2, 3.0]),
    ],
)
def test_loss_averages_to_the_models_own(loss):
    model = tiny_classifier()
    model.head.loss_module = type(model.head)(2, 64, loss=loss).loss_module
    images, bgr, labels = draw()
    target = TargetModel(model)
    with target.frozen(), torch.no_grad():
        output = target(images, labels)
    assert output.loss.shape == (4,) and output.loss.std() > 0
    torch.testing.assert_close(output.loss.mean(), stock_loss(model, bgr, labels))
    torch.testing.assert_close(output.predictions, output.logits.max(dim=1).indices)


@pytest.mark.parametrize('pixels', ['bgr', 'rgb'])
def test_channel_order(pixels):
    """A model that is trained on what an RGB pipeline hands over must get RGB."""
    model = tiny_classifier()
    images, bgr, labels = draw()
    inputs = bgr if pixels == 'bgr' else [image.flip(0) for image in bgr]
    target = TargetModel(model, channel_order=pixels)
    with target.frozen(), torch.no_grad():
        loss = target(images, labels).loss.mean()
    torch.testing.assert_close(loss, stock_loss(model, inputs, labels))


def test_batch_augmentation_stays_out():
    config = dict(augments=dict(type='Mixup', alpha=1.0), num_classes=2)
    model = tiny_classifier()
    images, bgr, labels = draw()
    expected = stock_loss(model, bgr, labels)
    from mmpretrain.models.utils.batch_augments import RandomBatchAugment

    model.data_preprocessor.batch_augments = RandomBatchAugment(config['augments'])
    target = TargetModel(model.train())
    with target.frozen(), torch.no_grad():
        torch.testing.assert_close(target(images, labels).loss.mean(), expected)


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=2),
        dict(type='CrossEntropyLoss', use_soft=True),
        dict(type='CrossEntropyLoss', use_sigmoid=True),
        dict(type='FocalLoss'),
    ],
)
def test_other_losses_are_judged_by_cross_entropy(loss):
    model = tiny_classifier()
    model.head.loss_module = type(model.head)(2, 64, loss=loss).loss_module
    images, _, labels = draw()
    target = TargetModel(model)
    with target.frozen(), torch.no_grad():
        output = target(images, labels)
    expected = -output.logits.log_softmax(1)[torch.arange(4), labels]
    torch.testing.assert_close(output.loss, expected)


def test_gradient_reaches_the_image():
    model = tiny_classifier(smooth=True).double()
    images, _, labels = draw(2)
    images = images.double().requires_grad_()
    target = TargetModel(model, input_size=(24, 24))
    with target.frozen():
        gradient = torch.autograd.grad(target(images, labels).loss.sum(), images)[0]
        direction = gradient / gradient.norm()
        ends = [target(images + sign * 1e-3 * direction, labels).loss.sum() for sign in (1, -1)]
    expected = float((ends[0] - ends[1]).detach()) / 2e-3
    assert abs(float(gradient.norm()) - expected) <= 1e-2 * expected


def test_the_model_is_as_before():
    model = tiny_classifier().train()
    model.backbone.layer1.eval()  # as norm_eval or frozen stages would have it
    next(model.parameters()).requires_grad_(False)
    model.head.fc.weight.grad = torch.ones_like(model.head.fc.weight)
    before = everything_about(model)
    images, _, labels = draw()
    images.requires_grad_()
    target = TargetModel(model)
    with target.frozen():
        assert not any(module.training for module in model.modules())
        with target.frozen():  # a judgement inside a search
            target(images, labels)
        assert not any(module.training for module in model.modules())
        target(images, labels).loss.sum().backward()
    assert images.grad.abs().sum() > 0
    assert_unchanged(model, before)
    with pytest.raises(RuntimeError, match='inside'), target.frozen():
        raise RuntimeError('inside')
    assert_unchanged(model, before)


def test_model_wrapper(device):
    model = tiny_classifier().to(device)
    images, _, labels = draw()
    plain, wrapped = TargetModel(model), TargetModel(nn.DataParallel(copy.deepcopy(model)))
    with plain.frozen(), wrapped.frozen(), torch.no_grad():
        torch.testing.assert_close(plain(images, labels).loss, wrapped(images, labels).loss)


@pytest.mark.parametrize(
    'name, size',
    [
        ('imagenet_bs32', (224, 224)),  # ResizeEdge 256, CenterCrop 224
        ('imagenet_bs64_swin_384', (384, 384)),  # Resize 384
        ('imagenet_bs64_swin_256', (256, 256)),
        ('cub_bs8_448', (448, 448)),
        ('voc_bs16', (224, 224)),
        ('cifar10_bs16', None),
    ],
)
def test_size_of_stock_test_pipelines(name, size):
    pipeline = Config.fromfile(CONFIGS / f'{name}.py').test_dataloader.dataset.pipeline
    if name == 'cifar10_bs16':  # its images come from an archive
        pipeline = [dict(type='LoadImageFromFile'), *pipeline]
    target = TargetModel.from_pipeline(tiny_classifier(), pipeline)
    assert (target.input_size, target.channel_order) == (size, 'bgr')


@pytest.mark.parametrize(
    'transforms, size',
    [
        ([dict(type='EfficientNetCenterCrop', crop_size=240)], (240, 240)),
        ([dict(type='mmcv.Resize', scale=(40, 30))], (30, 40)),  # (width, height)
        ([dict(type='Resize', scale=50), dict(type='CenterCrop', crop_size=(40, 30))], (30, 40)),
        ([dict(type='torchvision/Resize', size=(30, 40))], (30, 40)),  # (height, width)
        ([dict(type='RandomFlip')], None),
        ([dict(type='Resize', scale=50), dict(type='ColorJitter', brightness=0.4)], (50, 50)),
        ([dict(type='Resize', scale=(40, 30)), dict(type='Pad', size=(40, 30))], (30, 40)),
        ([dict(type='Resize', scale=50), dict(type='Resize', scale_factor=1.0)], (50, 50)),
    ],
)
def test_size_conventions(transforms, size):
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type='PackInputs')]
    assert TargetModel.from_pipeline(tiny_classifier(), pipeline).input_size == size


@pytest.mark.parametrize(
    'transforms, order',
    [
        ([dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy', to_bgr=True)], 'bgr'),
        ([dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')], 'rgb'),
        ([dict(type='NumpyToPIL', to_rgb=True)], 'rgb'),
        ([dict(type='NumpyToPIL'), dict(type='PILToNumpy')], 'bgr'),
        ([dict(type='ToPIL', to_rgb=True)], 'rgb'),
        ([dict(type='ToPIL', to_rgb=True), dict(type='ToNumpy', to_bgr=True)], 'bgr'),
    ],
)
def test_channel_order_is_what_the_pipeline_hands_over(transforms, order, tmp_path):
    path = tmp_path / 'red.png'
    Image.new('RGB', (8, 8), (255, 0, 0)).save(path)
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type='PackInputs')]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        packed = Compose(pipeline)(dict(img_path=str(path)))['inputs']
    assert packed[:, 0, 0].tolist() == dict(bgr=[0, 0, 255], rgb=[255, 0, 0])[order]
    assert TargetModel.from_pipeline(tiny_classifier(), pipeline).channel_order == order


@pytest.mark.parametrize(
    'transforms, says',
    [
        (
            [
                dict(type='Resize', scale=(2048, 512), keep_ratio=True),
                dict(type='ResizeToMultiple', size_divisor=32),
            ],
            'has ResizeToMultiple, whose size depends',
        ),
        ([dict(type='ResizeShortestEdge', scale=(480, 640), max_size=2560)], 'whose size depends'),
        ([dict(type='Resize', scale_factor=0.5)], 'resizes by scale_factor=0.5'),
        ([dict(type='Resize', scale=224), dict(type='Pad', size=(256, 256))], 'has Pad'),
        ([dict(type='RandomResizedCrop', scale=32)], 'RandomResizedCrop, which .* cannot follow'),
        ([dict(type='Albumentations', transforms=[])], 'Albumentations, which .* cannot follow'),
        ([dict(type='torchvision/Grayscale', num_output_channels=3)], 'torchvision/Grayscale'),
        ([dict(type='Rgb2Gray'), dict(type='Resize', scale=224)], 'Rgb2Gray, which .* cannot'),
    ],
)
def test_what_is_not_followed_is_refused(transforms, says):
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type='PackInputs')]
    with pytest.raises(ValueError, match=says):
        TargetModel.from_pipeline(tiny_classifier(), pipeline)
    given = dict(input_size=(32, 40), channel_order='rgb')
    target = TargetModel.from_pipeline(tiny_classifier(), pipeline, **given)
    assert (target.input_size, target.channel_order) == ((32, 40), 'rgb')


def test_what_input_does_not_say_the_pipeline_says():
    resize = dict(type='torchvision/Resize', size=256)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='NumpyToPIL', to_rgb=True), resize]
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    target = build_target(tiny_classifier(), config, dict(input_size=(256, 256)))
    assert (target.input_size, target.channel_order) == ((256, 256), 'rgb')
    pipeline[2] = dict(type='Resize', scale=224)
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    target = build_target(tiny_classifier(), config, dict(channel_order='bgr'))
    assert (target.input_size, target.channel_order) == ((224, 224), 'bgr')
    target = build_target(tiny_classifier(), Config(), dict(input_size=(64, 64)))
    assert (target.input_size, target.channel_order) == ((64, 64), 'bgr')
    with pytest.raises(ValueError, match='no test or val pipeline'):
        build_target(tiny_classifier(), Config(), dict(channel_order='rgb'))


@pytest.mark.parametrize('change', ['mean', 'std', 'order', 'size', 'swap'])
def test_identity_is_all_that_decides_what_it_says(change):
    target, other = TargetModel(tiny_classifier()), TargetModel(tiny_classifier())
    assert target.identity() == other.identity()
    if change in ('mean', 'std'):
        getattr(other.model.data_preprocessor, change).add_(1)
    elif change == 'swap':
        other.model.data_preprocessor.to_rgb = not other.model.data_preprocessor.to_rgb
    elif change == 'order':
        other.channel_order = 'rgb'
    else:
        other.input_size = (20, 20)
    assert target.identity() != other.identity()
    json.dumps(target.identity())


def test_pipeline_given_by_classes():
    from mmcv.transforms import LoadImageFromFile
    from mmpretrain.datasets.transforms import CenterCrop, ResizeEdge

    pipeline = [
        dict(type=LoadImageFromFile),
        dict(type=ResizeEdge, scale=256, edge='short'),
        dict(type=CenterCrop, crop_size=224),
    ]
    assert TargetModel.from_pipeline(tiny_classifier(), pipeline).input_size == (224, 224)


@pytest.mark.parametrize('size', [(20, 30), (96, 96)])
def test_judges_as_the_test_pipeline_would(size, tmp_path):
    """A smooth picture, so that bilinear filters of different programs agree."""
    y, x = np.mgrid[:64, :64] / 64
    picture = np.stack([y, x, 0.5 + 0.5 * np.sin(5 * x + 3 * y)], axis=2)
    picture = (255 * picture).round().astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / 'picture.png')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=size[::-1], backend='pillow', interpolation='bilinear'),
        dict(type='PackInputs'),
    ]
    model = tiny_classifier().eval()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        transformed = _compose(pipeline)(dict(img_path=str(tmp_path / 'picture.png'), gt_label=1))
    target = TargetModel.from_pipeline(model, pipeline)
    data = pseudo_collate([transformed])
    with torch.no_grad(), target.frozen():
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        logits = target(image, torch.tensor([1])).logits
        expected = model(**model.data_preprocessor(data, False), mode='tensor')
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


def _compose(pipeline):
    from mmpretrain.registry import TRANSFORMS

    return Compose([TRANSFORMS.build(transform) for transform in pipeline])


def test_resize_is_antialiased():
    """A pixel checkerboard is grey from afar; without a filter it would be black or white."""
    board = torch.from_numpy(np.indices((96, 96)).sum(0) % 2).float().expand(1, 3, -1, -1)
    seen = []
    target = TargetModel(tiny_classifier(), input_size=(16, 16))
    target.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with target.frozen(), torch.no_grad():
        target(board, torch.tensor([0]))
    preprocessor = target.model.data_preprocessor
    values = seen[0] * preprocessor.std + preprocessor.mean
    assert (values - 127.5).abs().max() < 15


def test_bad_targets():
    model = tiny_classifier()
    with pytest.raises(ValueError, match="got 'gbr'"):
        TargetModel(model, channel_order='gbr')
    with pytest.raises(ValueError, match='loads no image'):
        TargetModel.from_pipeline(model, [dict(type='PackInputs')])
    resize = dict(type='Resize', scale=(2000, 480), keep_ratio=True)
    with pytest.raises(ValueError, match='keeps the ratio.*give input=dict'):
        TargetModel.from_pipeline(model, [dict(type='LoadImageFromFile'), resize])
    edge = dict(type='ResizeEdge', scale=256)
    with pytest.raises(ValueError, match='resizes to 256 and keeps the ratio'):
        TargetModel.from_pipeline(model, [dict(type='LoadImageFromFile'), edge])
    for kind in ('Normalize', 'torchvision/Normalize', 'torchvision/ToTensor'):
        with pytest.raises(ValueError, match=f'the test pipeline has {kind}'):
            TargetModel.from_pipeline(model, [dict(type='LoadImageFromFile'), dict(type=kind)])
    crop = dict(type='CenterCrop', crop_size=224)
    cropped = TargetModel.from_pipeline(model, [dict(type='LoadImageFromFile'), resize, crop])
    assert cropped.input_size == (224, 224)
    headless = build_classifier(
        dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, base_channels=8))
    )
    target = TargetModel(headless)
    with target.frozen(), pytest.raises(ValueError, match='classifier with a head'):
        target(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
