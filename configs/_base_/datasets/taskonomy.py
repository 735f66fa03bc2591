# Taskonomy, its tiny split, seen at 256 pixels: data loaders and evaluators.
dataset_type = 'mmgap.Taskonomy'
data_root = 'data/taskonomy'
train_buildings = [
    'allensville',
    'beechwood',
    'benevolence',
    'coffeen',
    'cosmos',
    'forkland',
    'hanson',
    'hiteman',
    'klickitat',
    'lakeville',
    'leonardo',
    'lindenwood',
    'marstons',
    'merom',
    'mifflinburg',
    'newfields',
    'onaga',
    'pinesdale',
    'pomaria',
    'ranchester',
    'shelbyville',
    'stockman',
    'tolstoy',
    'wainscott',
]  # without woodbine, whose files were damaged and are lost (omnidata's issue 3)
val_buildings = ['collierville', 'corozal', 'darden', 'markleeville', 'wiconisco']
test_buildings = ['ihlen', 'mcdade', 'muleshoe', 'noxapater', 'uvalda']

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5] * 3,
    std=[127.5] * 3,
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=0,  # 255 would be a depth
    size=(256, 256),
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
    dict(type='Resize', scale=(256, 256)),
    load_depth,  # after the resize: predictions are compared at the depth map's own size
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
        type=dataset_type, data_root=data_root, buildings=val_buildings, pipeline=test_pipeline
    ),
)
# As DepthMetric, but for images without a known pixel, of which Taskonomy has some.
val_evaluator = dict(type='mmgap.GroupDepth')
test_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type, data_root=data_root, buildings=test_buildings, pipeline=test_pipeline
    ),
)
test_evaluator = val_evaluator
