# Guided adversarial prompts for a ViT-B/16 on iWildCam, in the paper's settings: see
# _base_/loops/gap_iwildcam.py. Data: data/iwildcam (see docs/data.md).
#   mmgap check gap_vit-base-p16_iwildcam
#   mmgap train gap_vit-base-p16_iwildcam
# Not run at full size yet; by proportion to Waterbirds' step, 10000 steps of 14 images take eight
# hours on an H100.
_base_ = ['mmpretrain::_base_/models/vit-base-p16.py', '_base_/loops/gap_iwildcam.py']
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
    head=dict(num_classes=7, topk=(1,), loss=dict(_delete_=True, type='CrossEntropyLoss')),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.01))
