# Adversarial prompts for a ViT-B/16 on Waterbirds, in the paper's settings: see
# _base_/loops/ap_waterbirds.py. Data: data/waterbirds (see docs/data.md).
#   mmgap check ap_vit-base-p16_waterbirds
#   mmgap train ap_vit-base-p16_waterbirds
# Not run at full size yet. On an H100, with random weights of Stable Diffusion's sizes, the search
# took 27 to 29 minutes and the images 2.4 (docs/results/README.md#cost-time-and-memory).
_base_ = ['mmpretrain::_base_/models/vit-base-p16.py', '_base_/loops/ap_waterbirds.py']
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
