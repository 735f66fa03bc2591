# Adversarial prompts for a ResNet-50 on NYU Depth v2: any backbone of MMSegmentation can be the
# target. Generator, prompts and search as in the paper; the rest is ours.
#   mmgap train ap_resnet50_nyu-depth
# Not run at full size yet; by proportion to Waterbirds' step, at most 2000 steps of 256 images take
# 30 hours on an H100, the ControlNet not counted.
_base_ = ['ap_dpt-vit-b16_nyu-depth.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='timm-mmseg://resnet50c.gluon_in1k'),
    ),
    decode_head=dict(
        _delete_=True,
        type='mmgap.ConvDepthHead',
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=256,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        max_depth=10.0,
        loss_decode=dict(type='mmgap.RobustSiLogLoss'),
    ),
)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.01))
