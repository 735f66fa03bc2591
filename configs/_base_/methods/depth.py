# What `mmgap benchmark` compares on Taskonomy and NYU. A method is a fragment: what it changes in
# the hook of the config, which is `ap`. The numbers of steps and the learning rates are guesses:
# nobody has run these at full size yet.

# What a user says of where the model will be used.
descriptions = ['a photo at night', 'a photo in fog']
text_guidance = dict(
    type='mmgap.TextGuidance', descriptions=descriptions, assign='turn', weight=1.0
)
on_to_the_end = dict(stop_loss=None)

benchmark = dict(
    steps=1000,
    autocast='bfloat16',
    compare='gap',  # paired with every other method
    last_layer='decode_head.conv_seg.',
    optimizers=dict(
        last=dict(type='AdamW', lr=1e-4),
        all=dict(type='AdamW', lr=3e-5),
    ),
    methods={
        'none': dict(about='training goes on with real images alone'),
        'agnostic': dict(
            about='neutral sentences', texts=['a photo', 'a picture', 'an image', 'a photograph']
        ),
        'random': dict(
            about='draws from the Gaussian of the vocabulary, the starting points of ap',
            initial=dict(),
        ),
        'prompts': dict(about='the descriptions as they are', texts=descriptions),
        'gp': dict(about='guidance alone', search=on_to_the_end, feedback=[text_guidance]),
        'ap': dict(about='adversarial prompts: the hook as it is', search=dict()),
        'ap-sdedit': dict(
            about='adversarial prompts, drawn from the source at strength 0.6',
            search=dict(),
            generator=dict(strength=0.6),
        ),
        'gap': dict(
            about='guided adversarial prompts',
            search=on_to_the_end,
            feedback=[
                dict(type='mmgap.DepthAdversarialLoss', loss='ssi', floor=-0.5),
                text_guidance,
            ],
        ),
    },
)
