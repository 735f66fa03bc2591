# Adversarial prompts for a U-Net on Taskonomy's depth: the paper's settings for generator, prompts
# and search, also the loss at which a prompt is done. The training schedule is ours.
#
# Data: data/taskonomy (see mmgap.Taskonomy). Weights: folders or hub ids, in the hook's generator.
_base_ = [
    '_base_/depth_runtime.py',
    '_base_/taskonomy.py',
    '_base_/depth_sd15.py',
    '_base_/depth_methods.py',
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
        # For guided prompts stop_loss=None and the feedback of the method `gap` in the benchmark
        # or, with 100 unlabelled pictures,
        #     dict(type='mmgap.ImageGuidance', images=FOLDER, limit=100, weight=5.0, clip=CLIP),
        feedback=[dict(type='mmgap.DepthAdversarialLoss', loss='l1')],
        search=dict(
            prompts_per_class=32,
            tokens=[1, 8, 16, 32],
            steps=2000,
            num_inference_steps=5,
            images_per_prompt=8,
            batch_size=8,
            stop_loss=-1.25,  # metres; the paper's 0.08 is of depth in units of 8000 / 512 m
            max_restarts=0,
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-3)
            ),
        ),
        synthesis=dict(num_inference_steps=15, batch_size=8),
        start=20,
        budget=80000,
    )
]

train_pipeline = _base_.train_pipeline
benchmark = dict(
    methods=dict(
        gap=dict(
            feedback=[
                dict(type='mmgap.DepthAdversarialLoss', loss='l1', floor=-1.25),
                _base_.text_guidance,
            ]
        ),
        style=dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    *train_pipeline[:3],
                    # With another data_root: here, too.
                    dict(
                        type='mmgap.AmplitudeMix',
                        images=dict(
                            type='mmgap.Taskonomy',
                            data_root='data/taskonomy',
                            buildings=_base_.train_buildings,
                        ),
                    ),
                    *train_pipeline[3:],
                ]
            },
        ),
        real=dict(
            about='real images of the validation data: the upper bound',
            dataset=dict(buildings=_base_.val_buildings),
        ),
    )
)
