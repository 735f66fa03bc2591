# The embedded world's Stable Diffusion around kept birds, and the search of adversarial prompts.
generator = dict(
    type='mmgap.InpaintingGenerator',
    model='mmgap://toybirds-sd',
    negative_prompt='a bird',  # the kept one is enough; words that name one draw another
    guidance_scale=5.0,
    eta=1.0,
    autocast='bfloat16',
)
adversarial_search = dict(
    prompts_per_class=4,
    tokens=5,
    steps=20,
    num_inference_steps=5,
    images_per_prompt=3,
    batch_size=24,
    stop_loss=0.05,  # driven further, the look around the bird breaks
    stop_window=2,
    holdout=8,
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1)),
)
