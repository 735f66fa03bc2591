# The embedded world's Stable Diffusion with its depth ControlNet.
generator = dict(
    type='mmgap.ControlNetGenerator',
    model='mmgap://toybirds-sd',
    controlnet='mmgap://toybirds-controlnet',
    conditioning_scale=1.5,  # of 1, 1.5 and 2 the best on val
    guidance_scale=5.0,
    eta=1.0,
    autocast='bfloat16',
)
