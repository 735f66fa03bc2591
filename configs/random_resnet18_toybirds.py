# Random prompts on the embedded world, without a search: each image has a draw from the Gaussian of
# the vocabulary as its prompt. The cheapest method; images enter by a refit.
#   mmgap train random_resnet18_toybirds
# Not timed by itself yet. As the benchmark's method `random-many`, 100 images: worst group 0.97,
# 0.81 and 0.76 on val of three seeds (docs/results/trials.md).
_base_ = ['ap_resnet18_toybirds.py']

gap_hook = dict(
    search=dict(_delete_=True, steps=0, prompts_per_class=50, tokens=5, holdout=0),
    injection=dict(mode='refit'),
    budget=100,
)
