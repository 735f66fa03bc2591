# The old name of benchmark/toybirds_variants.py, for one release.
_base_ = ['benchmark/toybirds_variants.py']
renamed = 'benchmark/toybirds_variants'
