# Guided adversarial prompts for a ResNet-50 on Waterbirds, in the paper's setting: toward sentences
# that say where it will be used, L2 in the text encoder, weight 20.
#   mmgap check gap_resnet50_waterbirds
#   mmgap train gap_resnet50_waterbirds
# Not run at full size yet; the search takes what that of ap_resnet50_waterbirds.py does.
_base_ = ['ap_resnet50_waterbirds.py', '_base_/searches/guided_waterbirds.py']

gap_hook = dict(
    feedback=[{{_base_.attack}}, {{_base_.text_guidance}}],
    search=dict(stop_loss=None),  # guidance goes on to the end
)
