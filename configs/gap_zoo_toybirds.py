# Several targets on the embedded world, for tools/benchmark_zoo.py.
_base_ = ['gap_resnet18_toybirds.py', '_base_/toybirds_zoo.py']
custom_imports = dict(imports=['mmgap', 'mmgap.models'], allow_failed_imports=False)
