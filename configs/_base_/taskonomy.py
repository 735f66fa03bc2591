# Taskonomy at 256 pixels, as its downloads lie on disk: data loaders and evaluators.
# The splits are lists of buildings, which come with the downloads.
dataset_type = 'mmgap.Taskonomy'
data_root = 'data/taskonomy'
train_buildings = None  # None: all that are there
test_buildings = None

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5] * 3,
    std=[127.5] * 3,
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=0,  # 255 would be a depth
)
load_depth = dict(type='mmgap.LoadDepth', depth_rescale_factor=1 / 512, unknown=65535)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load_depth,
    dict(type='Resize', scale=(256, 256)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    load_depth,
    dict(type='Resize', scale=(256, 256)),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type, data_root=data_root, buildings=train_buildings, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type, data_root=data_root, buildings=test_buildings, pipeline=test_pipeline
    ),
)
val_evaluator = dict(type='DepthMetric')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
