# SPDX-License-Identifier: Apache-2.0
"""Child registries with scope ``mmgap``.

``locations`` are imported, all of them, at the first look-up. Depth heads need MMSegmentation and
are therefore not among them: the configs that use them list ``mmgap.models`` in ``custom_imports``.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmgap', locations=['mmgap.hooks'])
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmgap',
    locations=['mmgap.datasets', 'mmgap.toyworld'],
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmgap', locations=['mmgap.evaluation'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgap')
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmgap',
    locations=['mmgap.generators', 'mmgap.feedback', 'mmgap.masks'],
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmgap', locations=['mmgap.datasets']
)
