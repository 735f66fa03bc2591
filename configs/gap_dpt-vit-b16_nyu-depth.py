# The old name of ap_dpt-vit-b16_nyu-depth.py, and of its benchmark, for one release.
_base_ = ['benchmark/nyu-depth_dpt-vit-b16.py']
renamed = 'ap_dpt-vit-b16_nyu-depth (its benchmark: benchmark/nyu-depth_dpt-vit-b16)'
