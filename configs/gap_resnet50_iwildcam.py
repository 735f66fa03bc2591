# Guided adversarial prompts for a ResNet-50 on iWildCam, in the paper's settings: see
# _base_/loops/gap_iwildcam.py. Data: data/iwildcam (see docs/data.md).
#   mmgap check gap_resnet50_iwildcam
#   mmgap train gap_resnet50_iwildcam
# Not run at full size yet; by proportion to Waterbirds' step, 10000 steps of 14 images take eight
# hours on an H100.
_base_ = ['mmpretrain::_base_/models/resnet50.py', '_base_/loops/gap_iwildcam.py']
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=7, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4))
