# Guided adversarial prompts on iWildCam with Stable Diffusion 1.5: the paper's settings
# (arXiv 2403.15309), but the 64 images that guide are split off the test images by sequence, so
# results cannot be compared with the paper's. The training schedule, the ratio of images to real
# ones, images_per_prompt and patience are ours. Of background nothing is kept: it has no masks.
#
# Weights: a folder or hub id. Made for a GPU of 24 GB. On less set
# gradient=dict(checkpoint='blocks'), then lower search.batch_size; what was measured is in
# docs/results/README.md#cost-time-and-memory.
_base_ = ['mmpretrain::_base_/default_runtime.py', 'iwildcam.py', 'iwildcam_methods.py']

stable_diffusion = 'stable-diffusion-v1-5/stable-diffusion-v1-5'

train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=32)
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator=dict(
            type='mmgap.InpaintingGenerator',
            model=stable_diffusion,
            size=384,
            guidance_scale=5.0,
            strength=0.8,
            eta=1.0,
            scheduler=dict(type='DDIMScheduler'),
            negative_prompt='comic, cartoon, synthetic, rendered, animated, painting, sketch, '
            'drawing, highly saturated, humans, people',
            gradient=dict(mode='full', checkpoint='steps'),
            autocast='bfloat16',
        ),
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
