# All methods for a U-Net on Taskonomy's depth, at equal image budgets.
#   mmgap benchmark benchmark/taskonomy-depth_unet --budgets 100 400 \
#       --out runs/taskonomy
# Not run at full size yet.
_base_ = ['../ap_unet_taskonomy-depth.py', '../_base_/methods/depth.py']

train_pipeline = _base_.train_pipeline
benchmark = dict(
    methods=dict(
        gap=dict(
            feedback=[
                dict(type='mmgap.DepthAdversarialLoss', loss='l1', floor=-1.25),
                {{_base_.text_guidance}},
            ]
        ),
        style=dict(
            about='amplitude spectra mixed between training images, no new images',
            train={
                'train_dataloader.dataset.pipeline': [
                    *train_pipeline[:3],
                    # With another data_root: here, too.
                    dict(
                        type='mmgap.AmplitudeMix',
                        images=dict(
                            type='mmgap.Taskonomy',
                            data_root='data/taskonomy',
                            buildings=_base_.train_buildings,
                        ),
                    ),
                    *train_pipeline[3:],
                ]
            },
        ),
        real=dict(
            about='real images of the validation data: the upper bound',
            dataset=dict(buildings=_base_.val_buildings),
        ),
    )
)
