# The old name of benchmark/toybirds_zoo.py, for one release.
_base_ = ['benchmark/toybirds_zoo.py']
renamed = 'benchmark/toybirds_zoo'
