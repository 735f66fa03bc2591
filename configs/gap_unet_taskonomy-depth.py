# The old name of ap_unet_taskonomy-depth.py, and of its benchmark, for one release.
_base_ = ['benchmark/taskonomy-depth_unet.py']
renamed = 'ap_unet_taskonomy-depth (its benchmark: benchmark/taskonomy-depth_unet)'
