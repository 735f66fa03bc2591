# What `mmgap benchmark` compares on NYU, which has no split beside train and test that `real`
# could take. The configs that inherit from this put the augmentation of `style` into a pipeline.
_base_ = ['depth.py']

amplitude_mix = dict(
    type='mmgap.AmplitudeMix',
    # With another data_root: here, too.
    images=dict(
        type='NYUDataset',
        data_root='data/nyu',
        data_prefix=dict(img_path='images/train', depth_map_path='annotations/train'),
    ),
)
benchmark = dict(
    methods=dict(style=dict(about='amplitude spectra mixed between training images, no new images'))
)
