# Stable Diffusion 1.5 in the paper's settings (arXiv 2403.15309): what its generators share. Made
# for a GPU of 24 GB. On less set gradient=dict(checkpoint='blocks'), which takes far less memory
# and longer, then lower search.batch_size; what was measured is in
# docs/results/README.md#cost-time-and-memory.
stable_diffusion = 'stable-diffusion-v1-5/stable-diffusion-v1-5'  # a folder or hub id

generator = dict(
    model=stable_diffusion,
    size=384,
    guidance_scale=7.0,
    strength=1.0,
    scheduler=dict(type='DDIMScheduler'),
    negative_prompt='comic, cartoon, synthetic, rendered, animated, painting, sketch, '
    'drawing, highly saturated, humans, people',
    gradient=dict(mode='full', checkpoint='steps'),
    autocast='bfloat16',
)
