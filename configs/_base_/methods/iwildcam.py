# What `mmgap benchmark` compares on iWildCam. A method is a fragment: what it changes in the hook
# of the config, which is `gap`. The feedback of `gp` and `inversion` comes from the configs that
# inherit from this. "Groups" are the classes here, their measure F1, the mean macro F1.
benchmark = dict(
    steps=1000,
    autocast='bfloat16',
    compare='gap',  # paired with every other method
    methods=dict(
        none=dict(about='training goes on with real images alone'),
        agnostic=dict(
            about='neutral sentences',
            texts=['a camera trap photo', 'a photo', 'a photo of nature', 'a photo of a landscape'],
        ),
        random=dict(
            about='draws from the Gaussian of the vocabulary, the starting points of ap',
            initial=dict(),
        ),
        gp=dict(about='guidance alone', search=dict(steps=2000)),
        inversion=dict(about='textual inversion', search=dict(steps=2000)),
        ap=dict(
            about='adversarial prompts',
            search=dict(steps=2000),
            feedback=[dict(type='mmgap.AdversarialLoss', mode='uniform')],
        ),
        gap=dict(about='guided adversarial prompts: the hook as it is', search=dict()),
        style=dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='mmgap.AmplitudeMix',
                        # With another data_root: here, too.
                        images=dict(
                            type='mmgap.IWildCam', data_root='data/iwildcam', split='train'
                        ),
                    ),
                    dict(
                        type='RandomResizedCrop',
                        scale=224,
                        crop_ratio_range=(0.7, 1.0),
                        backend='pillow',
                    ),
                    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                    dict(type='PackInputs'),
                ]
            },
        ),
        real=dict(
            about='real images of the validation data: the upper bound',
            dataset=dict(split='val', locations=None, time=None, hours=None),
        ),
    ),
)
