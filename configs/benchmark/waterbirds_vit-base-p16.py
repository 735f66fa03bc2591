# All methods for a ViT-B/16 on Waterbirds, at equal image budgets.
#   mmgap benchmark benchmark/waterbirds_vit-base-p16 --budgets 100 400 \
#       --out runs/waterbirds
# Not run at full size yet.
_base_ = ['../ap_vit-base-p16_waterbirds.py', '../_base_/methods/waterbirds.py']

benchmark = dict(
    last_layer='head.',
    optimizers=dict(
        last=dict(type='AdamW', lr=1e-3),
        all=dict(type='AdamW', lr=1e-5),
    ),
)
