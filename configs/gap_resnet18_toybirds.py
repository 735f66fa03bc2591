# Guided adversarial prompts on the embedded world: searched from four sentences that say where the
# model will be used, toward them and against the model; more images go where it fails more.
#   mmgap train gap_resnet18_toybirds
# Not timed by itself yet. As the benchmark's method `gap`, 200 images and a refit: worst group
# 0.90 ± 0.04 on ten seeds (docs/results/README.md#injection-mixed-in-or-as-a-refit).
_base_ = ['ap_resnet18_toybirds.py', '_base_/searches/guided_toybirds.py']

gap_hook = dict(
    feedback=[{{_base_.patient_attack}}, {{_base_.text_guidance}}],
    search=dict(_base_.from_descriptions, aim=1.0),
    synthesis=dict(aim=0.5),
)
