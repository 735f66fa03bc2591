# SPDX-License-Identifier: Apache-2.0
"""Errors of depth per group, such as night and fog, and in the worst group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmgap.registry import METRICS
from mmgap.typed import typed


@METRICS.register_module()
@typed
class GroupDepth(BaseMetric):
    """MMSegmentation's ``DepthMetric`` for each group of images.

    - ``<group>/<metric>``: mean over the images of a group of each of ``DepthMetric``'s metrics:
      ``abs_rel``, ``rmse`` (metres), ``d1`` …
    - ``group/<group>``, ``worst_group`` (the largest) and ``mean`` (the plain average over groups)
      of ``abs_rel``.

    Images without a known pixel are left out. Group names come from ``groups`` in the metainfo of
    the data set, the group of an image from the data info key ``group``, which must pass the
    pipeline's last step::

        dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'group'))

    Images of a data set without ``groups`` are one group, ``all``. Unlike ``DepthMetric`` alone,
    whose mean turns NaN at the first image without a known pixel, that works on any data.

    Args:
        min_depth_eval: Metres; nearer pixels do not count.
        max_depth_eval: Metres; farther pixels do not count.
        crop_type: ``'nyu_crop'`` or None, see ``DepthMetric``.
        collect_device: see :class:`mmengine.evaluator.BaseMetric`.
        prefix: put before every key, with a slash.
        collect_dir: see :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: If no image has known depth.
        KeyError: If images have no ``group`` and the metainfo has ``groups``, or the other way.
    """

    default_prefix = ''

    def __init__(
        self,
        min_depth_eval: float = 0.0,
        max_depth_eval: float = float('inf'),
        crop_type: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        from mmgap.compat import allow_mmcv_without_ops

        allow_mmcv_without_ops()
        from mmseg.evaluation import DepthMetric

        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        # Never its argument depth_metrics, which ends in a TypeError in MMSegmentation 1.2.2.
        self._upstream = DepthMetric(
            min_depth_eval=min_depth_eval, max_depth_eval=max_depth_eval, crop_type=crop_type
        )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the metrics and the group of each image of a batch.

        Args:
            data_batch: unused.
            data_samples: predictions as dicts: ``pred_depth_map``, ``gt_depth_map`` and ``group``.
        """
        grouped = bool((self.dataset_meta or {}).get('groups'))
        for sample in data_samples:
            if grouped and 'group' not in sample:
                raise KeyError(
                    'GroupDepth: an image has no `group`. The data set must give it, and the last '
                    'step of the test pipeline must keep it: '
                    "dict(type='PackSegInputs', meta_keys=(…, 'group')); this image has "
                    f'{sorted(sample)}'
                )
            group = int(sample['group']) if 'group' in sample else None
            self._upstream.results = []
            self._upstream.process(data_batch, [sample])
            ((depth, prediction),) = self._upstream.results
            metrics = self._upstream._calc_all_metrics(depth, prediction) if len(depth) else None
            # One entry per image: results of several ranks are cut to the data set's size.
            self.results.append((group, metrics))

    def compute_metrics(
        self, results: list[tuple[int | None, dict[str, float] | None]]
    ) -> dict[str, float]:
        """Computes the metrics named above.

        Args:
            results: group (None where the data set has none) and metrics of every image, None for
                images without a known pixel.
        """
        meta = self.dataset_meta or {}
        groups = {group for group, _ in results if group is not None}
        if not groups:
            results, meta = [(0, metrics) for _, metrics in results], dict(groups=('all',))
        if not meta.get('groups'):
            raise KeyError(
                'GroupDepth: the metainfo of the data set names no `groups`; add '
                f"metainfo=dict(groups=('name of group 0', ...)) to it. Found: {sorted(meta)}"
            )
        names = tuple(meta['groups'])
        strange = sorted(group for group in groups if not 0 <= group < len(names))
        if strange:
            raise ValueError(f'GroupDepth: groups {strange} are not among the {len(names)} {names}')
        found: dict[str, float] = {}
        errors = {}
        for number, name in enumerate(names):
            own = [metrics for group, metrics in results if group == number and metrics is not None]
            if not own:
                continue
            for metric in self._upstream.METRICS:
                found[f'{name}/{metric}'] = float(np.mean([metrics[metric] for metrics in own]))
            errors[name] = found[f'{name}/abs_rel']
        if not errors:
            raise ValueError('GroupDepth: there are no images with known depth to evaluate')
        found.update({f'group/{name}': error for name, error in errors.items()})
        every = list(errors.values())  # NaN of one group is that of both
        return dict(found, worst_group=float(np.max(every)), mean=float(np.mean(every)))
