# What `mmgap benchmark` compares on ToyBirds at equal budgets: `layers` are fine-tuned from one
# base checkpoint per seed with the same steps, a refit's included. A method is a fragment: what it
# changes in the hook of the config, which is `ap`. All get as many prompts, images and training
# steps; how many of these, the configs that inherit from this say.
_base_ = ['../searches/brief_toybirds.py', '../searches/guided_toybirds.py']

descriptions = _base_.descriptions
from_descriptions = _base_.from_descriptions
patient_attack = _base_.patient_attack
text_guidance = _base_.text_guidance
guidance_images = dict(type='mmgap.ToyBirds', split='guidance')
image_guidance = dict(
    type='mmgap.ImageGuidance', images=guidance_images, clip=_base_.clip, clusters=4, weight=5.0
)
inversion_guidance = dict(type='mmgap.InversionGuidance', images=guidance_images)
on_to_the_end = dict(stop_loss=None)

benchmark = dict(
    autocast='bfloat16',
    compare='gap',  # paired with every other method
    # Ways for images to enter training, for --injections; each changes the hook's own.
    injections=dict(
        mix=dict(mode='mix'),
        refit=dict(mode='refit'),
        staged=dict(mode='staged'),
        replace=dict(mode='replace'),
        auto=dict(mode='auto'),
    ),
    optimizers=dict(
        last=dict(type='SGD', lr=0.1, momentum=0.9),
        all=dict(type='SGD', lr=0.002, momentum=0.9),
    ),
    # Of these real images, how many are covered by a method's, in CLIP's space?
    coverage=dict(
        clip={{_base_.clip}},
        # Not the first 400, which are those of `real`.
        images=dict(split='val', size=1000, indices=list(range(400, 800))),
    ),
    # Beside test; `val` has fresh indices, since `real` takes the first 400.
    evaluate=dict(
        val=dict(split='val', size=1000, indices=list(range(400, 1000))),
        val_id=dict(split='val_id'),
        test_shift=dict(split='test_shift', size=400),
    ),
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
        **{
            'random-many': dict(
                about='random, but a draw for every two images, one of each class, instead of '
                'four for each class',
                initial=dict(prompts_per_class=50),
            ),
            'ap-many': dict(
                about='ap with more prompts, each searched briefly and not evaluated',
                search={{_base_.brief_search}},
            ),
        },
        prompts=dict(about='the descriptions as they are', texts=descriptions),
        places=dict(
            about='the descriptions without the bird, which this generator draws better',
            texts=['a forest', 'bamboo', 'the ocean', 'a lake'],
        ),
        gp=dict(
            about='guidance alone, from the descriptions and toward them',
            search=from_descriptions,
            feedback=[text_guidance],
        ),
        inversion=dict(
            about='textual inversion of unlabelled guidance images',
            search=on_to_the_end,
            feedback=[inversion_guidance],
        ),
        ap=dict(about='adversarial prompts, drawn with sources of all classes', search=dict()),
        **{
            'prompts-aim': dict(
                about='prompts, whose images go where the target fails',
                texts=descriptions,
                synthesis=dict(aim=0.5),
            ),
            'prompts-shift': dict(
                about='the descriptions with "at night in fog"',
                texts=[f'{said} at night in fog' for said in descriptions],
            ),
            'gp-aim': dict(
                about='gp, from the descriptions on which the target fails, without an attack',
                search=dict(from_descriptions, aim=1.0),
                feedback=[text_guidance],
            ),
            'ap-own': dict(
                about='the same prompts, each drawn with its own class only',
                prompts_of='ap',
                synthesis=dict(cross=False),
            ),
            'gap': dict(
                about='as gp, from the descriptions on which the target fails, with an attack; '
                'half of the images by failure',
                search=dict(from_descriptions, aim=1.0),
                feedback=[patient_attack, text_guidance],
                synthesis=dict(aim=0.5),
            ),
            'gap-even': dict(
                about='gap, whose prompts are all drawn alike',
                prompts_of='gap',
                synthesis=dict(aim=0.0),
            ),
            'gap-images': dict(
                about='guided toward unlabelled guidance images instead, with an attack',
                search=dict(on_to_the_end, steps=30),
                feedback=[patient_attack, image_guidance],
                synthesis=dict(aim=0.5),
            ),
            'gap-shift': dict(
                about='gap with "at night in fog" in its descriptions',
                search=dict(
                    from_descriptions,
                    init=[f'{said} at night in fog' for said in descriptions],
                    tokens=9,
                    aim=1.0,
                ),
                feedback=[
                    patient_attack,
                    dict(
                        text_guidance,
                        descriptions=[f'{said} at night in fog' for said in descriptions],
                    ),
                ],
                synthesis=dict(aim=0.5),
            ),
            'gap-shift-images': dict(
                about='gap-images with 16 unlabelled images like those of test_shift',
                search=dict(on_to_the_end, steps=45, images_per_prompt=2),
                feedback=[
                    patient_attack,
                    dict(
                        image_guidance, images=dict(type='mmgap.ToyBirds', split='guidance_shift')
                    ),
                ],
                synthesis=dict(aim=0.5),
            ),
        },
        randaugment=dict(
            about='RandAugment, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                    dict(
                        type='RandAugment',
                        policies='timm_increasing',
                        num_policies=2,
                        total_level=10,
                        magnitude_level=9,
                        magnitude_std=0.5,
                    ),
                    dict(type='PackInputs'),
                ]
            },
        ),
        cutmix=dict(
            about='CutMix, no new images',
            train={'model.train_cfg': dict(augments=dict(type='CutMix', alpha=1.0))},
        ),
        style=dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='mmgap.AmplitudeMix',
                        images=dict(type='mmgap.ToyBirds', split='train'),
                    ),
                    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                    dict(type='PackInputs'),
                ]
            },
        ),
        paste=dict(
            about='birds pasted on training images of the other class, half of each batch; no new '
            'images',
            train={
                'train_dataloader.dataset.pipeline': [
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='mmgap.PasteObject',
                        images=dict(type='mmgap.ToyBirds', split='train'),
                    ),
                    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                    dict(type='PackInputs'),
                ]
            },
        ),
        real=dict(
            about='real images of the target distribution: the upper bound',
            dataset=dict(type='mmgap.ToyBirds', split='val', size=400),
        ),
    ),
)
