# SPDX-License-Identifier: Apache-2.0
"""A sample pool as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, Compose

from mmgap.manifest import MANIFEST, ManifestReader, Sample
from mmgap.registry import DATASETS
from mmgap.typed import typed


@DATASETS.register_module()
@typed
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

    data_bytes: np.ndarray
    data_address: np.ndarray
    _fully_initialized: bool

    def __init__(self, pool: str, budget: int | None = None, **kwargs: Any) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f'budget must be at least 1, got {budget}')
        self.pool = pool
        self.budget = budget
        self._reader = ManifestReader(pool)
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
        self._reader.forget()
        samples, _ = self._reader.read()
        kept = [sample for sample in samples if sample.kept]
        if not kept:
            wanted = '' if self.budget is None else f', and budget={self.budget} asks for some'
            raise FileNotFoundError(f'pool={self.pool!r} has no samples in {MANIFEST}{wanted}')
        if self.budget is not None and self.budget > len(kept):
            raise ValueError(f'budget={self.budget}, but {self.pool!r} has {len(kept)} samples')
        self.depth_unit = kept[0].depth_unit
        self._check(kept)
        return [self._info(sample) for sample in kept[: self.budget]]

    def refresh(self) -> None:
        """Take what has been added to the pool; all anew, if it is not what it was.

        The time goes with the number of new images.

        Raises:
            FileNotFoundError: As for the class.
            ValueError: As for the class.
        """
        loaded = self._fully_initialized and self._indices is None and self.serialize_data
        held = len(self) if loaded else 0
        self._fully_initialized = False  # until all has been found right
        if loaded:
            samples, follow = self._reader.read()
            kept = [sample for sample in samples if sample.kept]
            if follow:
                self._check(kept)
                more = None if self.budget is None else self.budget - held
                self._extend([self._info(sample) for sample in kept[:more]])
                self._fully_initialized = True
                return
        self.full_init()

    def fingerprint(self) -> str:
        """Names what is in the pool: its images, what drew them and in which way."""
        return self._reader.checksum

    def _extend(self, infos: list[dict[str, Any]]) -> None:
        """Add to what MMEngine has serialised."""
        if not infos:
            return
        self.data_list = infos
        added, ends = self._serialize_data()
        self.data_address = np.concatenate([self.data_address, ends + len(self.data_bytes)])
        self.data_bytes = np.concatenate([self.data_bytes, added])

    def _check(self, samples: Sequence[Sample]) -> None:
        """See that samples are for these classes, and their depth in one unit."""
        classes, folder = self._metainfo.get('classes'), self._reader.folder
        for sample in samples:
            if sample.depth_unit != self.depth_unit:
                units = sorted({str(sample.depth_unit), str(self.depth_unit)})
                raise ValueError(f'pool={self.pool!r} mixes depth in units of {units}')
            if not classes or sample.depth_file is not None:
                continue
            if 0 <= sample.label < len(classes):
                name = classes[sample.label]
                if sample.label_name not in (None, name):
                    raise ValueError(
                        f'{folder}/{sample.file} was drawn as class {sample.label}, '
                        f'{sample.label_name!r}, and class {sample.label} of the data is {name!r}: '
                        f'its label would mean another class. Give the data the classes that '
                        f'pool={self.pool!r} was drawn for, in their order, or draw it anew'
                    )
            else:
                raise ValueError(
                    f'{folder}/{sample.file} has label {sample.label}, which is none of the '
                    f'{len(classes)} classes {list(classes[:8])}: pool={self.pool!r} was drawn for '
                    'other data'
                )

    def _info(self, sample: Sample) -> dict[str, Any]:
        folder = self._reader.folder
        info: dict[str, Any] = dict(
            img_path=f'{folder}/{sample.file}',  # a Path takes ten times as long
            prompt_id=sample.prompt_id,
            source_index=sample.source_index,
            round=sample.round,
        )
        if sample.depth_file is None:
            return dict(info, gt_label=sample.label)
        return dict(info, depth_map_path=f'{folder}/{sample.depth_file}', seg_fields=[])

    def _join_prefix(self) -> None:
        """Paths are complete already."""
