# Adversarial prompts for a ResNet-50 on Waterbirds, in the paper's settings: see
# _base_/loops/ap_waterbirds.py. Data: data/waterbirds (see docs/data.md).
#   mmgap check ap_resnet50_waterbirds
#   mmgap train ap_resnet50_waterbirds
# Not run at full size yet. On an H100, with random weights of Stable Diffusion's sizes, the search
# took 27 to 29 minutes and the images 2.4 (docs/results/README.md#cost-time-and-memory).
_base_ = ['mmpretrain::_base_/models/resnet50.py', '_base_/loops/ap_waterbirds.py']
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    head=dict(num_classes=2, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4))
