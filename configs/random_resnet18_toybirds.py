# Random prompts on the embedded world, without a search: prompts are draws from the Gaussian of the
# vocabulary, each for two of the images, one of each class. The cheapest method; images enter by a
# refit.
#   mmgap train random_resnet18_toybirds
# 80 to 95 s on one core; worst group before 0.00 to 0.09, after 0.91, 0.90, 0.93, 0.90 and 0.87
# (seeds 0 to 4, test).
_base_ = ['ap_resnet18_toybirds.py']

# At the rate of the first epochs a whole network learns a hundred images by heart.
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[3], gamma=0.1)
gap_hook = dict(
    search=dict(_delete_=True, steps=0, prompts_per_class=50, tokens=5, holdout=0),
    injection=dict(mode='refit'),
    budget=100,
)
