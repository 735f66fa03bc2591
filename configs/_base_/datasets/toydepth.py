# ToyDepth, drawn when read: data loaders and evaluators. Nothing is on disk.
dataset_type = 'mmgap.ToyDepth'

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5] * 3,
    std=[127.5] * 3,
    bgr_to_rgb=True,
    seg_pad_val=0,  # 255 would be a depth
    size=(64, 64),
)
load_depth = dict(type='mmgap.LoadDepth', depth_rescale_factor=1e-3)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load_depth,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    load_depth,
    dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'group')),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, split='val', pipeline=test_pipeline),
)
val_evaluator = [dict(type='mmgap.GroupDepth')]
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, split='test', pipeline=test_pipeline),
)
test_evaluator = val_evaluator
