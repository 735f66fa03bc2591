# Adversarial prompts for a ViT-B/16 on Waterbirds: see _base_/waterbirds_sd15.py. Data:
# data/waterbirds (see docs/data.md).
_base_ = ['mmpretrain::_base_/models/vit-base-p16.py', '_base_/waterbirds_sd15.py']
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            # DeiT's, from Hugging Face; also a file: timm://PATH.safetensors
            checkpoint='timm://deit_base_patch16_224.fb_in1k',
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
