# Many adversarial prompts on the embedded world, each searched briefly: 20 for each class, three
# steps each, none evaluated. Images enter by a refit.
#   mmgap train ap-many_resnet18_toybirds
# Not timed by itself yet. As the benchmark's method `ap-many`, 100 images: worst group 0.93, 0.87
# and 0.82 on val of three seeds (docs/results/trials.md).
_base_ = ['ap_resnet18_toybirds.py', '_base_/searches/brief_toybirds.py']

gap_hook = dict(search={{_base_.brief_search}}, injection=dict(mode='refit'), budget=100)
