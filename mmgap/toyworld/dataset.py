# SPDX-License-Identifier: Apache-2.0
"""ToyBirds: landbirds and waterbirds on land and water, drawn when they are read."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import BaseDataset

from mmgap.registry import DATASETS
from mmgap.toyworld.backend import ToyBirdsBackend
from mmgap.toyworld.birds import SUBTYPES
from mmgap.toyworld.renderer import WORLD_VERSION, subtype_of
from mmgap.toyworld.splits import GROUPS, SIZES, UNLABELLED, Record, record
from mmgap.toyworld.vocabulary import BIRDS
from mmgap.typed import typed

SPECIES = tuple(subtype for bird in BIRDS for subtype in SUBTYPES[bird])


@DATASETS.register_module()
@typed
class ToyBirds(BaseDataset):
    """Birds whose background gives them away in training, and only there.

    ``train`` and ``val_id`` show landbirds on land and waterbirds on water alone, mostly on clear
    days. ``val``, ``test`` and ``test_final`` are balanced over the four groups under the same
    conditions; ``test_shift`` is balanced, at night and in fog. A published table reads splits of
    its own, once: ``test_final_2``, ``test_shift_2`` and, distributed like ``train``,
    ``test_id_2``, or those with ``_3``. ``guidance`` and ``guidance_shift`` are unlabelled pictures
    like ``test`` and ``test_shift``. No two splits share a scene. Pictures are read through
    MMEngine's file client (``toybirds://`` paths), so stock pipelines work unchanged.

    Args:
        split: One of ``splits.SIZES``.
        size: Number of records; None for the split's own (see ``splits.SIZES``). Record ``i`` is
            the same at every size.
        species: Label birds by their species, six classes in place of two: songbirds, wrens and
            pigeons live on land, herons, ducks and storks on water. The pictures are the same.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: If the split is unknown or the size is not positive.
    """

    METAINFO = {
        'dataset_type': 'toybirds',
        'classes': BIRDS,
        'groups': GROUPS,
        'world_version': WORLD_VERSION,
    }

    def __init__(
        self, split: str = 'train', size: int | None = None, species: bool = False, **kwargs: Any
    ) -> None:
        if split not in SIZES:
            raise ValueError(f'split={split!r} is unknown; use one of {tuple(SIZES)}')
        if size is not None and size < 1:
            raise ValueError(f'size={size} must be positive, or None for {SIZES[split]} records')
        self.split = split
        self.species = species
        self.size = SIZES[split] if size is None else size
        train_size = self.size if split == 'train' else SIZES['train']
        classes = SPECIES if species else BIRDS
        groups = tuple(f'{bird}-{place}' for bird in classes for place in ('land', 'water'))
        counts = [0] * len(groups)
        for index in range(train_size):  # fully correlated: a bird's label tells its place
            counts[self._labels(record('train', index))[1] if species else 3 * (index % 2)] += 1
        metainfo = {
            'classes': classes,
            'groups': groups,
            'train_group_counts': tuple(counts),
            **(kwargs.pop('metainfo', None) or {}),
        }
        super().__init__(metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Lists the records; those of the guidance splits hold a picture and nothing else."""
        infos = []
        for index in range(self.size):
            info: dict[str, Any] = {'img_path': ToyBirdsBackend.image_path(self.split, index)}
            if self.split not in UNLABELLED:
                drawn = record(self.split, index)
                label, group = self._labels(drawn)
                info.update(
                    gt_label=label,
                    group=group,
                    mask_path=ToyBirdsBackend.truth_path(self.split, index),
                )
            infos.append(info)
        return infos

    def _labels(self, drawn: Record) -> tuple[int, int]:
        """Class and group of a record."""
        if not self.species:
            return drawn.label, drawn.group
        label = SPECIES.index(str(subtype_of(drawn.scene)))
        return label, 2 * label + drawn.place

    def _join_prefix(self) -> None:
        """Paths are complete already, and there is no annotation file."""
