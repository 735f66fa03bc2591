# All methods for a ViT-B/16 on iWildCam, at equal image budgets.
#   mmgap benchmark benchmark/iwildcam_vit-base-p16 --budgets 100 400 \
#       --out runs/iwildcam
# Not run at full size yet.
_base_ = ['../gap_vit-base-p16_iwildcam.py', '../_base_/methods/iwildcam.py']

benchmark = dict(
    last_layer='head.',
    optimizers=dict(
        last=dict(type='AdamW', lr=1e-3),
        all=dict(type='AdamW', lr=1e-5),
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
