# Stable Diffusion 1.5 with its depth ControlNet, in the paper's settings (arXiv 2403.15309) but for
# the ControlNet's image: the released code shows it depth, linear in metres
# (condition_image=dict(type='mmgap.LinearDepth')); it was trained on inverse depth, the default.
stable_diffusion = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
depth_controlnet = 'lllyasviel/sd-controlnet-depth'

generator = dict(
    type='mmgap.ControlNetGenerator',
    model=stable_diffusion,
    controlnet=depth_controlnet,
    size=384,
    guidance_scale=7.0,
    strength=1.0,
    eta=0.0,
    scheduler=dict(type='DDIMScheduler'),
    negative_prompt='comic, cartoon, synthetic, rendered, animated, painting, sketch, '
    'drawing, highly saturated, humans, people',
    gradient=dict(mode='full', checkpoint='steps'),  # 'blocks' takes far less memory, and longer
    autocast='bfloat16',
)
