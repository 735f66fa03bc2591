# Guided adversarial prompts on iWildCam with Stable Diffusion 1.5: the paper's settings
# (arXiv 2403.15309), but the 64 images that guide are split off the test images by sequence, so
# results cannot be compared with the paper's. The training schedule, the ratio of images to real
# ones, images_per_prompt and patience are ours. Of background nothing is kept: it has no masks.
_base_ = [
    '../datasets/iwildcam.py',
    '../generators/sd15_inpainting.py',
    '../schedules/40_epochs.py',
    '../searches/guided_iwildcam.py',
]

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator=dict(_base_.generator, guidance_scale=5.0, strength=0.8),
        feedback=[
            dict(type='mmgap.AdversarialLoss', mode='uniform', start=2000),
            {{_base_.image_guidance}},
        ],
        search=dict(
            scope='all',
            prompts_per_class=1,  # 7 in all; the paper has 4
            tokens=10,
            steps=10000,
            num_inference_steps=5,
            images_per_prompt=2,
            batch_size=8,
            stop_loss=None,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3)),
        ),
        synthesis=dict(num_inference_steps=5, batch_size=8),
        injection=dict(ratio=0.25),
        start=20,
        budget=2224,  # or 556
    )
]
