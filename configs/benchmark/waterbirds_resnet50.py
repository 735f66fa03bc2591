# All methods for a ResNet-50 on Waterbirds, at equal image budgets.
#   mmgap benchmark benchmark/waterbirds_resnet50 --budgets 100 400 \
#       --out runs/waterbirds
# Not run at full size yet.
_base_ = ['../ap_resnet50_waterbirds.py', '../_base_/methods/waterbirds.py']

benchmark = dict(
    train={'model.backbone.norm_eval': True},
    last_layer='head.',
    optimizers=dict(
        last=dict(type='SGD', lr=1e-2, momentum=0.9),
        all=dict(type='SGD', lr=1e-3, momentum=0.9),
    ),
)
