# All methods against a weak target on the embedded world, at equal image budgets.
#   mmgap benchmark benchmark/toybirds_resnet18 \
#       --methods none agnostic random prompts gp ap gap real --budgets 100 400 --layers all \
#       --out runs/toybirds
# All 14 methods of the table in docs/results/README.md took 114 minutes on 2 cores.
_base_ = ['../ap_resnet18_toybirds.py', '../_base_/methods/toybirds.py']

# Steps and learning rates were tried on val.
benchmark = dict(
    steps=80,
    # Statistics of mixed batches cost ten points, and doubled the scatter between trainings.
    train={'model.backbone.norm_eval': True},
)
