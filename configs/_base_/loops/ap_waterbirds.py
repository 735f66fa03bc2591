# Adversarial prompts on Waterbirds with Stable Diffusion 1.5: the paper's settings
# (arXiv 2403.15309), but prompts are drawn with the birds of both classes (cross=True).
# The training schedule, images_per_prompt and patience are ours.
_base_ = [
    '../datasets/waterbirds.py',
    '../generators/sd15_inpainting.py',
    '../schedules/40_epochs.py',
]

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
        search=dict(
            prompts_per_class=4,
            tokens=5,
            steps=1000,
            num_inference_steps=5,
            images_per_prompt=1,
            batch_size=8,
            patience=200,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3)),
        ),
        synthesis=dict(num_inference_steps=15, batch_size=8),
        injection=dict(ratio=839 / (839 + 1139)),
        start=20,
        budget=839,
    )
]
