# A config of the new style, as MMPretrain's own new ones are: classes, and no default scope.
from mmcv.transforms import Resize
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.model import PretrainedInit
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmpretrain.datasets.transforms import LoadImageFromFile, PackInputs
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
from mmpretrain.models.losses import CrossEntropyLoss
from torch.optim import SGD

from mmgap.datasets import Waterbirds
from mmgap.evaluation import GroupAccuracy

default_scope = None
model = dict(
    type=ImageClassifier,
    backbone=dict(
        type=ResNet,
        depth=18,
        base_channels=32,
        stem_channels=32,
        deep_stem=True,
        init_cfg=dict(
            type=PretrainedInit, checkpoint='mmgap://toybirds-resnet18', prefix='backbone'
        ),
    ),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead,
        num_classes=2,
        in_channels=256,
        topk=(1,),
        loss=dict(type=CrossEntropyLoss),
    ),
)
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
meta_keys = ('sample_idx', 'img_path', 'group')
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(32, 32)),
    dict(type=PackInputs, meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=6,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=Waterbirds, data_root='', split='train', pipeline=pipeline),
)
test_dataloader = dict(
    batch_size=6,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=Waterbirds, data_root='', split='test', pipeline=pipeline),
)
test_evaluator = [dict(type=GroupAccuracy)]
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.02))
param_scheduler = dict(type=CosineAnnealingLR, by_epoch=True, T_max=2)
train_cfg = dict(by_epoch=True, max_epochs=2)
test_cfg = dict()
randomness = dict(seed=3)
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=1), logger=dict(type=LoggerHook, interval=1)
)
