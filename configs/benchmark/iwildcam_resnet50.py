# All methods for a ResNet-50 on iWildCam, at equal image budgets.
#   mmgap benchmark benchmark/iwildcam_resnet50 --budgets 100 400 \
#       --out runs/iwildcam
# Not run at full size yet.
_base_ = ['../gap_resnet50_iwildcam.py', '../_base_/methods/iwildcam.py']

benchmark = dict(
    train={'model.backbone.norm_eval': True},
    last_layer='head.',
    optimizers=dict(
        last=dict(type='SGD', lr=1e-2, momentum=0.9),
        all=dict(type='SGD', lr=1e-3, momentum=0.9),
    ),
    methods=dict(
        gp=dict(feedback=[{{_base_.image_guidance}}]),
        inversion=dict(
            feedback=[
                dict(type='mmgap.InversionGuidance', images={{_base_.guidance_images}}, limit=64)
            ]
        ),
    ),
)
