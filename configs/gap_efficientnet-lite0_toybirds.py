# Guided adversarial prompts for a strong target on the embedded world: see
# gap_resnet18_toybirds.py and ap_efficientnet-lite0_toybirds.py. Needs mmgap[strong].
#   mmgap train gap_efficientnet-lite0_toybirds
# Not timed by itself yet. As the benchmark's method `gap`, 200 images and a refit: worst group
# 0.87 ± 0.05 on ten seeds (docs/results/README.md#injection-mixed-in-or-as-a-refit).
_base_ = ['ap_efficientnet-lite0_toybirds.py', '_base_/searches/guided_toybirds.py']

gap_hook = dict(
    feedback=[{{_base_.patient_attack}}, {{_base_.text_guidance}}],
    search=dict(_base_.from_descriptions, aim=1.0),
    synthesis=dict(aim=0.5),
)
