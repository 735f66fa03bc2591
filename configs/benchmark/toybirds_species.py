# Is a refit good for more than two classes? Six, whole network:
#   mmgap benchmark benchmark/toybirds_species --budgets 288 --layers all --injections mix refit \
#       --out runs/species
# docs/results/README.md#species-more-than-two-classes has its table.
_base_ = ['../random_resnet18_toyspecies.py', '../_base_/searches/guided_toybirds.py']

benchmark = dict(
    autocast='bfloat16',
    compare='random',
    steps=120,
    train={'model.backbone.norm_eval': True},
    optimizers=dict(all=dict(type='SGD', lr=0.002, momentum=0.9)),
    injections=dict(mix=dict(mode='mix'), refit=dict(mode='refit')),
    evaluate=dict(
        val=dict(split='val', size=1000, indices=list(range(400, 1000))),
        val_id=dict(split='val_id'),
        test_shift=dict(split='test_shift', size=400),
    ),
    methods=dict(
        none=dict(about='training goes on with real images alone'),
        prompts=dict(about='the four descriptions as they are', texts={{_base_.descriptions}}),
        random=dict(about='random prompts, each drawn for all classes', initial=dict()),
        real=dict(
            about='real images of the balanced val split: the upper bound',
            dataset=dict(split='val', size=400),
        ),
    ),
)
