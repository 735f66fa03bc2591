# Guided adversarial prompts on Waterbirds: the hook with a fragment of the benchmark's methods. The
# same lines train with each of them that has a search and feedback.
_base_ = ['gap_resnet50_waterbirds.py']
hook = _base_.custom_hooks[0]
method = _base_.benchmark['methods']['gap']
hook['search'].update(method['search'])
hook['feedback'] = method['feedback']
custom_hooks = [hook]
benchmark = dict(_delete_=True)  # its methods are changes to the other config's hook
