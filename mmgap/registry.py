# SPDX-License-Identifier: Apache-2.0
"""Child registries with scope ``mmgap``.

``locations`` are imported, all of them, at the first look-up. Depth heads need MMSegmentation and
are therefore not among them: the configs that use them list ``mmgap.models`` in ``custom_imports``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry, build_from_cfg

from mmgap.typed import checked


def build_part(cfg: Mapping[str, Any], registry: Registry, **others: Any) -> Any:
    """Build a generator, a term, a critic or a segmenter, and name its type where that fails.

    Args:
        cfg: Its config.
        registry: Where its type is looked up.
        **others: As for MMEngine's ``build_from_cfg``.

    Raises:
        KeyError: If there is no such type; names those like it.
        TypeError: If a class of mmgap has no such setting, lacks one, or it has another type.
    """
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    found = TASK_UTILS.get(kind) if isinstance(kind, str) else kind
    if isinstance(found, type) and found.__module__.startswith('mmgap.'):
        given = {**(others.get('default_args') or {}), **cfg}
        settings = {name: given[name] for name in given if name not in ('type', '_scope_')}
        cfg = {**cfg, **checked(found, settings)}
    try:
        return build_from_cfg(cfg, registry, **others)
    except KeyError:
        if not isinstance(kind, str) or found is not None or registry.get(kind) is not None:
            raise
    names = [f'mmgap.{name}' for name in TASK_UTILS.module_dict]
    near = difflib.get_close_matches(kind, names, n=2, cutoff=0.5)
    hint = f'near it are {", ".join(near)}' if near else f'mmgap has {", ".join(sorted(names))}'
    raise KeyError(
        f'type={kind!r} is not registered; {hint}; name the module of a class of your own in '
        'custom_imports'
    )


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
    build_func=build_part,
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmgap', locations=['mmgap.datasets']
)
