# The old name of ap_resnet50_nyu-depth.py, and of its benchmark, for one release.
_base_ = ['benchmark/nyu-depth_resnet50.py']
renamed = 'ap_resnet50_nyu-depth (its benchmark: benchmark/nyu-depth_resnet50)'
