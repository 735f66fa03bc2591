# Adversarial prompts for a DPT on NYU Depth v2: the paper's generator, prompts, search and loss for
# DPT (it has Taskonomy and omnidata instead of NYU). The training schedule is ours.
#
# Data: data/nyu, as MMSegmentation prepares it. The ViT's weights come from Hugging Face.
#   mmgap check ap_dpt-vit-b16_nyu-depth
#   mmgap train ap_dpt-vit-b16_nyu-depth
# Not run at full size yet; by proportion to Waterbirds' step, at most 2000 steps of 256 images take
# 30 hours on an H100, the ControlNet not counted.
_base_ = [
    '_base_/runtime_depth.py',
    '_base_/datasets/nyu.py',
    '_base_/generators/sd15_controlnet.py',
]
custom_imports = dict(imports=['mmgap', 'mmgap.models'], allow_failed_imports=False)

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='DepthEstimator',
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(
        type='VisionTransformer',
        img_size=(480, 480),
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        out_indices=(2, 5, 8, 11),
        final_norm=False,
        patch_bias=True,  # the weights have one
        with_cls_token=True,
        output_cls_token=True,
        # Those of MMSegmentation's DPT configs; also a file: timm-mmseg://PATH.safetensors
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm-mmseg://vit_base_patch16_224.orig_in21k_ft_in1k',
        ),
    ),
    decode_head=dict(
        type='mmgap.DPTDepthHead',
        in_channels=(768, 768, 768, 768),
        in_index=(0, 1, 2, 3),
        input_transform='multiple_select',
        channels=256,
        embed_dims=768,
        post_process_channels=[96, 192, 384, 768],
        readout_type='project',
        norm_cfg=norm_cfg,
        max_depth=10.0,
        loss_decode=[
            dict(type='mmgap.RobustSiLogLoss'),
            dict(type='mmgap.ScaleShiftInvariantLoss', gradient_weight=0.5, loss_weight=0.1),
        ],
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=2)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2))

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        # For guided prompts (gap_hook in a config that inherits from this) stop_loss=None and the
        # feedback of the method `gap` in the benchmark or, with 100 unlabelled pictures,
        #     dict(type='mmgap.ImageGuidance', images=FOLDER, limit=100, weight=5.0, clip=CLIP),
        feedback=[dict(type='mmgap.DepthAdversarialLoss', loss='ssi')],
        # The paper's 1.0 is of a loss without the factor 1/2
        search=dict(_base_.adversarial_search, stop_loss=-0.5),
        synthesis=dict(num_inference_steps=15, batch_size=8),
        input=dict(input_size=(480, 480)),
        start=10,
        budget=24000,
    )
]
