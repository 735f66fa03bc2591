# Stable Diffusion 1.5 with its depth ControlNet, and the search of adversarial prompts with it, in
# the paper's settings (arXiv 2403.15309) but for the ControlNet's image: the released code shows it
# depth, linear in metres (condition_image=dict(type='mmgap.LinearDepth')); it was trained on
# inverse depth, the default.
_base_ = ['sd15.py']

depth_controlnet = 'lllyasviel/sd-controlnet-depth'  # a folder or hub id

generator = dict(type='mmgap.ControlNetGenerator', controlnet=depth_controlnet, eta=0.0)
adversarial_search = dict(
    prompts_per_class=32,
    tokens=[1, 8, 16, 32],
    steps=2000,
    num_inference_steps=5,
    images_per_prompt=8,
    batch_size=8,
    max_restarts=0,
    optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-3)
    ),
)
