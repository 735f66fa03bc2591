# Adversarial prompts for a ViT-B/16 on Waterbirds: see _base_/waterbirds_sd15.py. Data:
# data/waterbirds (see docs/data.md).
_base_ = ['mmpretrain::_base_/models/vit-base-p16.py', '_base_/waterbirds_sd15.py']
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/vit/'
            'vit-base-p16_pt-32xb128-mae_in1k_20220623-4c544545.pth',
            prefix='backbone',
        )
    ),
    head=dict(num_classes=2, topk=(1,), loss=dict(_delete_=True, type='CrossEntropyLoss')),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.01))
benchmark = dict(
    last_layer='head.',
    optimizers=dict(
        last=dict(type='AdamW', lr=1e-3),
        all=dict(type='AdamW', lr=1e-5),
    ),
)
