# Guided adversarial prompts for a ResNet-50 on iWildCam, in the paper's settings: see
# _base_/iwildcam_sd15.py. Data: data/iwildcam (see docs/data.md).
_base_ = ['mmpretrain::_base_/models/resnet50.py', '_base_/iwildcam_sd15.py']
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=7, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4))
benchmark = dict(
    train={'model.backbone.norm_eval': True},
    last_layer='head.',
    optimizers=dict(
        last=dict(type='SGD', lr=1e-2, momentum=0.9),
        all=dict(type='SGD', lr=1e-3, momentum=0.9),
    ),
)
