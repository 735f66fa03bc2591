# What `mmgap benchmark` compares on Waterbirds. A method is a fragment: what it changes in the
# hook of the config, which is `ap`.
_base_ = ['../searches/guided_waterbirds.py']

attack = _base_.attack
text_guidance = _base_.text_guidance
on_to_the_end = dict(stop_loss=None)

benchmark = dict(
    steps=1000,
    autocast='bfloat16',
    compare='gap',  # paired with every other method
    methods=dict(
        none=dict(about='training goes on with real images alone'),
        agnostic=dict(
            about='neutral sentences',
            texts=['a bird', 'a photo of a bird', 'a picture of a bird', 'an image of a bird'],
        ),
        random=dict(
            about='draws from the Gaussian of the vocabulary, the starting points of ap',
            initial=dict(),
        ),
        prompts=dict(about='the descriptions as they are', texts={{_base_.descriptions}}),
        gp=dict(about='guidance alone', search=on_to_the_end, feedback=[text_guidance]),
        inversion=dict(
            about='textual inversion of pictures of the places',
            search=on_to_the_end,
            # Yours to bring: a folder of unlabelled pictures, none of them test data.
            feedback=[dict(type='mmgap.InversionGuidance', images='data/waterbirds-guidance')],
        ),
        ap=dict(about='adversarial prompts: the hook as it is', search=dict()),
        gap=dict(
            about='guided adversarial prompts',
            search=on_to_the_end,
            feedback=[attack, text_guidance],
        ),
        style=dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='mmgap.AmplitudeMix',
                        # With another data_root: here, too.
                        images=dict(
                            type='mmgap.Waterbirds',
                            data_root='data/waterbirds',
                            split='train',
                            with_masks=False,
                            correlated=True,
                            num_samples=1139,
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
            dataset=dict(split='val'),
        ),
    ),
)
