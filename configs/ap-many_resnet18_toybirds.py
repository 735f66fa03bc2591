# Many adversarial prompts on the embedded world, each searched briefly: 20 for each class, three
# steps each, none evaluated. Images enter by a refit.
#   mmgap train ap-many_resnet18_toybirds
# Two and a half minutes on one core; worst group before 0.05, after 0.91 (seed 0, test). The
# search pays no more than random prompts do (docs/methods.md).
_base_ = ['ap_resnet18_toybirds.py', '_base_/searches/brief_toybirds.py']

# At the rate of the first epochs a whole network learns a hundred images by heart.
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[3], gamma=0.1)
gap_hook = dict(search={{_base_.brief_search}}, injection=dict(mode='refit'), budget=100)
