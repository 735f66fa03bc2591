# SPDX-License-Identifier: Apache-2.0
"""A sample pool as a dataset."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import BaseDataset, Compose

from mmgap.pool import Sample, SamplePool
from mmgap.registry import DATASETS


@DATASETS.register_module()
class SyntheticDataset(BaseDataset):
    """The generated images of a sample pool, with their labels.

    Data infos carry ``img_path`` and ``gt_label``, or ``depth_map_path`` in its place, as the
    toolboxes' own datasets do, and ``sample_idx``, ``prompt_id``, ``source_index`` and ``round``,
    so their pipelines run unchanged. Depth maps are in the unit of the data that they were made
    from.

    Args:
        pool: Folder of the pool.
        budget: Take only the first so many samples; all by default. Samples that a critic dropped
            neither count nor appear.
        **kwargs: MMEngine's: ``pipeline``, ``metainfo`` (with the ``classes``), ``lazy_init`` …

    Raises:
        FileNotFoundError: If the folder has no manifest or no sample in it.
        ValueError: If the pool is damaged, has labels that are none of the classes, or fewer
            samples than ``budget``.
    """

    def __init__(self, pool: str, budget: int | None = None, **kwargs: Any) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f'budget must be at least 1, got {budget}')
        self.pool = pool
        self.budget = budget
        # The pool's samples say all that MMEngine would look for in an annotation file.
        super().__init__(ann_file='', **kwargs)

    def full_init(self) -> None:
        """Read the manifest, and see that the pipeline reads depth in the pool's unit."""
        super().full_init()
        if self.pipeline.transforms:
            self.read_with(self.pipeline)

    def read_with(self, pipeline: Compose) -> None:
        """Take a pipeline.

        Raises:
            ValueError: If it reads depth in another unit than the pool's.
        """
        units = [getattr(t, 'depth_rescale_factor', None) for t in pipeline.transforms]
        read = next((own for own in units if own is not None), None)
        if self.depth_unit is not None and self.depth_unit != read:
            raise ValueError(
                f'the depth maps of pool={self.pool!r} are in units of {self.depth_unit:g} m, the '
                f'pipeline has depth_rescale_factor={read}; both must be the same'
            )
        self.pipeline = pipeline

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the manifest; ``depth_unit`` is then known."""
        pool = SamplePool(self.pool)
        kept = pool.kept
        if not kept:
            raise FileNotFoundError(f'pool={self.pool!r} has no samples in {pool.manifest.name}')
        if self.budget is not None and self.budget > len(kept):
            raise ValueError(f'budget={self.budget}, but {self.pool!r} has {len(kept)} samples')
        classes = self._metainfo.get('classes')
        strange = next((one for one in kept if classes and not 0 <= one.label < len(classes)), None)
        if strange is not None and strange.depth_file is None:
            raise ValueError(
                f'{pool.path(strange)} has label {strange.label}, which is none of the '
                f'{len(classes)} classes {list(classes[:8])}: pool={self.pool!r} was drawn for '
                'other data'
            )
        units = {sample.depth_unit for sample in kept}
        if len(units) > 1:
            raise ValueError(
                f'pool={self.pool!r} mixes depth in units of {sorted(map(str, units))}'
            )
        (self.depth_unit,) = units
        return [self._info(pool, sample) for sample in kept[: self.budget]]

    @staticmethod
    def _info(pool: SamplePool, sample: Sample) -> dict[str, Any]:
        info: dict[str, Any] = dict(
            img_path=f'{pool.folder}/{sample.file}',  # a Path takes ten times as long
            prompt_id=sample.prompt_id,
            source_index=sample.source_index,
            round=sample.round,
        )
        if sample.depth_file is None:
            return dict(info, gt_label=sample.label)
        return dict(info, depth_map_path=f'{pool.folder}/{sample.depth_file}', seg_fields=[])

    def _join_prefix(self) -> None:
        """Paths are complete already."""
