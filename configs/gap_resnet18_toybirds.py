# Adversarial prompts on the embedded world: everything real, only small; minutes on 2 cores.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/default_runtime.py',
    '_base_/toybirds.py',
    '_base_/toybirds_methods.py',
]
custom_imports = dict(imports=['mmgap'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        base_channels=32,
        stem_channels=32,
        deep_stem=True,
        # Stands in for ImageNet weights: has seen birds and places, uncorrelated.
        init_cfg=dict(type='Pretrained', checkpoint='mmgap://toybirds-resnet18', prefix='backbone'),
    ),
    head=dict(num_classes=2, in_channels=256, topk=(1,)),
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=9, val_interval=3)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=1))

custom_hooks = [
    dict(
        type='mmgap.GAPHook',
        generator={{_base_.generator}},
        feedback=[dict(type='mmgap.AdversarialLoss', mode='flip')],
        search={{_base_.adversarial_search}},
        synthesis=dict(num_inference_steps=10, batch_size=40),
        injection=dict(mode='auto', steps=20),
        start=3,
        budget=400,
    )
]

# What tools/benchmark.py compares at equal budgets: `layers` are fine-tuned from one base
# checkpoint per seed with the same steps, a refit's included. The methods are in
# _base_/toybirds_methods.py. Steps and learning rates were tried on val.
benchmark = dict(
    steps=80,
    autocast='bfloat16',
    # Statistics of mixed batches cost ten points, and doubled the scatter between trainings.
    train={'model.backbone.norm_eval': True},
    compare='gap',  # paired with every other method
    # Ways for images to enter training, for --injections; each changes the hook's own.
    injections=dict(
        mix=dict(mode='mix'),
        refit=dict(mode='refit'),
        staged=dict(mode='staged'),
        replace=dict(mode='replace'),
        auto=dict(mode='auto'),
    ),
    optimizers=dict(
        last=dict(type='SGD', lr=0.1, momentum=0.9),
        all=dict(type='SGD', lr=0.002, momentum=0.9),
    ),
    # Of these real images, how many are covered by a method's, in CLIP's space?
    coverage=dict(
        clip={{_base_.clip}},
        # Not the first 400, which are those of `real`.
        images=dict(split='val', size=1000, indices=list(range(400, 800))),
    ),
    # Beside test; `val` has fresh indices, since `real` takes the first 400.
    evaluate=dict(
        val=dict(split='val', size=1000, indices=list(range(400, 1000))),
        val_id=dict(split='val_id'),
        test_shift=dict(split='test_shift', size=400),
    ),
)
