# All methods for a ResNet-50 on NYU Depth v2, at equal image budgets.
#   mmgap benchmark benchmark/nyu-depth_resnet50 --budgets 100 400 \
#       --out runs/nyu
# Not run at full size yet.
_base_ = ['../ap_resnet50_nyu-depth.py', '../_base_/methods/nyu-depth.py']

train_pipeline = _base_.train_pipeline
benchmark = dict(
    methods=dict(
        style=dict(
            train={
                'train_dataloader.dataset.pipeline': [
                    *train_pipeline[:2],
                    _base_.amplitude_mix,
                    *train_pipeline[2:],
                ]
            }
        )
    )
)
