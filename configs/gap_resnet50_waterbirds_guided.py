# Guided adversarial prompts on Waterbirds: the hook with another fragment of the methods'. The same
# lines train with any of them.
_base_ = ['gap_resnet50_waterbirds.py']
hook = _base_.custom_hooks[0]
method = _base_.benchmark['methods']['gap']
hook['search'].update(method['search'])
hook['feedback'] = method['feedback']
custom_hooks = [hook]
