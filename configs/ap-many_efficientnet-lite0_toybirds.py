# Many adversarial prompts for a strong target on the embedded world, each searched briefly: see
# ap-many_resnet18_toybirds.py. Needs mmgap[strong].
#   mmgap train ap-many_efficientnet-lite0_toybirds
# Not timed by itself yet. As the benchmark's method `ap-many`, 100 images: worst group 0.88, 0.87
# and 0.89 on val of three seeds (docs/results/trials.md).
_base_ = ['ap_efficientnet-lite0_toybirds.py', '_base_/searches/brief_toybirds.py']

gap_hook = dict(search={{_base_.brief_search}}, injection=dict(mode='refit'), budget=100)
