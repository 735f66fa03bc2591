# The methods that tools/benchmark.py compares on ToyDepth. Each is a fragment: what it changes in
# the hook of the config. All get as many prompts, images and training steps.

# What a user says of the days when the model will be used: `prompts`, `guided` and `gap` get it.
descriptions = ['a picture at night', 'a picture in fog']
clip = dict(model='mmgap://toybirds-clip')
text_guidance = dict(
    type='mmgap.TextGuidance',
    descriptions=descriptions,
    assign='turn',
    space='clip',
    distance='cosine',
    clip=clip,
    weight=5.0,
)
on_to_the_end = dict(stop_loss=None)
from_descriptions = dict(
    on_to_the_end,
    init=descriptions,
    tokens=4,
    steps=15,
    images_per_prompt=2,
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.05)),
)

benchmark = dict(
    methods={
        'none': dict(about='training goes on with real images alone'),
        'agnostic': dict(
            about='neutral sentences',
            texts=['a picture', 'a photo', 'an image', 'a photo by day'],
        ),
        'random': dict(
            about='draws from the Gaussian of the vocabulary, the starting points of ap',
            initial=dict(),
        ),
        'prompts': dict(about='the descriptions as they are', texts=descriptions),
        'guided': dict(
            about='guidance alone, from the descriptions and toward them',
            search=from_descriptions,
            feedback=[text_guidance],
        ),
        'ap': dict(about='adversarial prompts', search=dict()),
        'ap-sdedit': dict(
            about='adversarial prompts, drawn from the source at strength 0.6',
            search=dict(),
            generator=dict(strength=0.6),
        ),
        'gap': dict(
            about='as guided, from the descriptions on which the target fails, with an attack; '
            'half of the images by failure',
            search=dict(from_descriptions, aim=1.0),
            feedback=[dict(type='mmgap.DepthAdversarialLoss', weight=0.05), text_guidance],
            synthesis=dict(aim=0.5),
        ),
        'style': dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(type='mmgap.LoadDepth', depth_rescale_factor=1e-3),
                    dict(
                        type='mmgap.AmplitudeMix',
                        images=dict(type='mmgap.ToyDepth', split='train'),
                    ),
                    dict(type='RandomFlip', prob=0.5),
                    dict(type='PackSegInputs'),
                ]
            },
        ),
        'real': dict(
            about='real images of clear days, nights and fog: the upper bound',
            dataset=dict(
                type='mmgap.ToyDepth',
                split='val',
                size=400,
                pipeline=[dict(type='mmgap.LoadDepth', depth_rescale_factor=1e-3)],
            ),
        ),
    },
)
