# The old name of gap_resnet50_waterbirds.py, for one release.
_base_ = ['gap_resnet50_waterbirds.py']
renamed = 'gap_resnet50_waterbirds'
