# All methods on ToyDepth, at equal budgets. Each is a fragment: what it changes in the hook, which
# is `gap`. All get as many prompts, images and training steps.
#   mmgap benchmark benchmark/toydepth_resnet18 --budgets 400 --layers all \
#       --out runs/toydepth
# docs/results/README.md#toydepth-depth-by-night-and-in-fog has its table.
_base_ = ['../gap_resnet18_toydepth.py']

# The error at which an image is hard enough: driven further, it shows other depth.
attack = dict(type='mmgap.DepthAdversarialLoss', floor=-0.6)
adversarial = dict(
    init='vocabulary',
    tokens=5,
    aim=0.0,
    steps=20,
    images_per_prompt=3,
    # Of 0.1 and 0.01 the better on val: a step of 0.1 is two deviations of the vocabulary.
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01)),
)

benchmark = dict(
    steps=80,
    autocast='bfloat16',
    train={'model.backbone.norm_eval': True},
    compare='gap',  # paired with every other method
    last_layer='decode_head.conv_seg.',
    # Ways for images to enter training, for --injections; each changes the hook's own.
    injections=dict(
        mix=dict(mode='mix'),
        refit=dict(mode='refit'),
        staged=dict(mode='staged', ratio=None),
        replace=dict(mode='replace', ratio=None),
        auto=dict(mode='auto'),
    ),
    optimizers=dict(
        last=dict(type='AdamW', lr=1e-3),
        all=dict(type='AdamW', lr=3e-4),
    ),
    # Beside test; `val` has fresh indices, since `real` takes the first 400.
    evaluate=dict(val=dict(split='val', size=700, indices=list(range(400, 700)))),
    methods={
        'none': dict(about='training goes on with real images alone'),
        'agnostic': dict(
            about='neutral sentences',
            texts=['a picture', 'a photo', 'an image', 'a photo by day'],
            synthesis=dict(aim=0.0),
        ),
        'random': dict(
            about='draws from the Gaussian of the vocabulary, the starting points of ap',
            initial=adversarial,
            synthesis=dict(aim=0.0),
        ),
        'prompts': dict(
            about='the descriptions as they are',
            texts={{_base_.descriptions}},
            synthesis=dict(aim=0.0),
        ),
        'gp': dict(
            about='guidance alone, from the descriptions and toward them',
            search=dict(aim=0.0),
            feedback=[{{_base_.text_guidance}}],
            synthesis=dict(aim=0.0),
        ),
        'ap': dict(
            about='adversarial prompts',
            search=adversarial,
            feedback=[attack],
            synthesis=dict(aim=0.0),
        ),
        'ap-sdedit': dict(
            about='adversarial prompts, drawn from the source at strength 0.6',
            search=adversarial,
            feedback=[attack],
            synthesis=dict(aim=0.0),
            generator=dict(strength=0.6),
        ),
        'gap': dict(
            about='the hook as it is: guided, from the descriptions on which the target fails, '
            'with an attack; half of the images by failure',
            search=dict(),
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
