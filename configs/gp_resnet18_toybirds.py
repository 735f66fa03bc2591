# Guided prompts on the embedded world: searched from four sentences and toward them, without an
# attack. The model in training decides nothing; `gap_resnet18_toybirds` is the same with it.
#   mmgap train gp_resnet18_toybirds
# Not timed by itself yet. As the benchmark's method `gp`, 100 images mixed in: worst group 0.79 on
# average of five seeds (docs/results/README.md#toybirds-every-method-at-equal-image-budgets).
_base_ = ['ap_resnet18_toybirds.py', '_base_/searches/guided_toybirds.py']

gap_hook = dict(feedback=[{{_base_.text_guidance}}], search={{_base_.from_descriptions}})
