# Adversarial prompts for a U-Net on Taskonomy's depth: the paper's settings for generator, prompts
# and search, also the loss at which a prompt is done. The training schedule is ours.
#
# Data: data/taskonomy (see mmgap.Taskonomy).
#   mmgap check ap_unet_taskonomy-depth
#   mmgap train ap_unet_taskonomy-depth
# Not run at full size yet; by proportion to Waterbirds' step, at most 2000 steps of 256 images take
# 30 hours on an H100, the ControlNet not counted.
_base_ = [
    '_base_/runtime_depth.py',
    '_base_/datasets/taskonomy.py',
    '_base_/generators/sd15_controlnet.py',
]
custom_imports = dict(imports=['mmgap', 'mmgap.models'], allow_failed_imports=False)

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='DepthEstimator',
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(type='UNet', base_channels=64, norm_cfg=norm_cfg),
    decode_head=dict(
        type='mmgap.ConvDepthHead',
        in_channels=64,
        in_index=4,
        channels=64,
        num_convs=1,
        concat_input=False,
        norm_cfg=norm_cfg,
        max_depth=20.0,
        loss_decode=dict(type='mmgap.MaskedL1Loss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=5e-4, weight_decay=2e-6))
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        # For guided prompts (gap_hook in a config that inherits from this) stop_loss=None and the
        # feedback of the method `gap` in the benchmark or, with 100 unlabelled pictures,
        #     dict(type='mmgap.ImageGuidance', images=FOLDER, limit=100, weight=5.0, clip=CLIP),
        feedback=[dict(type='mmgap.DepthAdversarialLoss', loss='l1')],
        # Metres; the paper's 0.08 is of depth in units of 8000 / 512 m
        search=dict(_base_.adversarial_search, stop_loss=-1.25),
        synthesis=dict(num_inference_steps=15, batch_size=8),
        start=20,
        budget=80000,
    )
]
