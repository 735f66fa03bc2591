# SPDX-License-Identifier: Apache-2.0
"""Real and generated samples in one dataset of fixed length."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, Compose, force_full_init
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS as ROOT_DATASETS

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.images import described
from mmgap.pool import REAL
from mmgap.registry import DATASETS
from mmgap.seeds import derive_seed, seeded
from mmgap.typed import typed
from mmgap.wrappers import Distinct, innermost, parts_of

MODES = ('replace', 'extend')
NEEDED = ('full_init', 'get_data_info', 'metainfo', '__len__', '__getitem__')  # of a dataset


@DATASETS.register_module()
@typed
class SyntheticMixDataset:
    """Mix a pool's samples into a dataset at a set ratio.

    The length never changes, however the pool grows: epoch length, learning-rate schedule and
    progress are fixed when training starts.

    - ``replace``: as long as the wrapped dataset; each draw is synthetic with probability
      ``ratio``.
    - ``extend``: ``round(real / (1 - ratio))`` long; the places after the real ones are synthetic.

    With ``paired``, a real sample gives way only to images that were drawn around itself, with
    probability ``ratio``; one that has none stays.

    While the pool is empty, every place is a real sample; with a ``budget`` it must not be.

    Args:
        dataset: The wrapped dataset or its config; it may be a wrapper itself, such as
            RepeatDataset, ConcatDataset, ClassBalancedDataset or KFoldDataset.
        pool: Folder of the sample pool; may be empty still. :class:`mmgap.GAPHook` sets it.
        ratio: Synthetic share, in [0, 1], and below 1 to ``extend``. It may be set anew at any
            time, which workers see when they start anew.
        mode: ``'replace'`` or ``'extend'``.
        budget: Take only the first so many samples of the pool.
        paired: Put images in the place of their own sources, in mode ``replace``.
        lazy_init: Do not load annotations yet.

    Raises:
        FileNotFoundError: If there is a ``budget`` and the pool has no samples.
        ValueError: If ``ratio`` or ``mode`` is out of range, or they do not fit each other; or the
            pool has fewer samples than ``budget``, or the pipeline for its images cannot be told.
        TypeError: If ``dataset`` is neither a dataset of MMEngine or a wrapper like its own, nor a
            config of one.
    """

    def __init__(
        self,
        dataset: BaseDataset | dict,
        pool: str | None = None,
        ratio: float = 0.5,
        mode: str = 'replace',
        budget: int | None = None,
        paired: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        if not 0 <= ratio <= 1 or (mode == 'extend' and ratio == 1):
            raise ValueError(f'ratio must be in [0, 1], below 1 to extend, got {ratio}')
        if paired and mode != 'replace':
            raise ValueError(f"paired=True needs mode='replace', got {mode!r}")
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        missing = [name for name in NEEDED if not hasattr(self.dataset, name)]
        if missing:
            raise TypeError(
                f'dataset must be a dataset of MMEngine, or a wrapper like its own, or a config of '
                f'one; {type(self.dataset).__name__} has no {", ".join(missing)}'
            )
        self.ratio = ratio
        self.mode = mode
        self.pool = pool
        self.budget = budget
        self.paired = paired
        self._redraws: dict[int, list[int]] | None = None
        self.seed: int | None = None
        self.rank: int | None = None  # where processes may get the same samples
        self.epoch = 0
        self._metainfo = self.dataset.metainfo
        self._synthetic: SyntheticDataset | None = None
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """A copy of the wrapped dataset's meta information."""
        return copy.deepcopy(self._metainfo)

    @property
    def synthetic(self) -> SyntheticDataset | None:
        """The pool's samples in use, with the pipeline of the real ones; None without any."""
        return self._synthetic

    @property
    def generated(self) -> SyntheticDataset:
        """The same where there must be some.

        Raises:
            ValueError: If there are none.
        """
        if self._synthetic is None:
            raise ValueError(f'pool={self.pool!r} has no samples yet')
        return self._synthetic

    @property
    def num_synthetic(self) -> int:
        """Number of the pool's samples in use."""
        return 0 if self._synthetic is None else len(self._synthetic)

    def full_init(self) -> None:
        """Load the wrapped dataset's annotations and, if there is one, the pool's manifest."""
        if self._fully_initialized:
            return
        self.dataset.full_init()
        self._num_real = len(self.dataset)
        self._pipeline()  # what cannot be mixed shall be refused now, not when there are images
        self._metainfo = self.dataset.metainfo
        self._fully_initialized = True
        if self.pool is not None:
            self.refresh()

    def refresh(self, pool: str | None = None) -> None:
        """Read what the pool has got since, or another one. Workers see it when they start anew."""
        pool = pool or self.pool
        if pool is None:
            raise ValueError('this mix has no pool yet; call refresh(pool) with its folder')
        self.pool = str(pool)
        synthetic = self._synthetic
        self._synthetic = self._redraws = None
        try:
            now = (self.pool, self.budget)
            if synthetic is not None and (synthetic.pool, synthetic.budget) == now:
                synthetic.refresh()
            else:
                synthetic = SyntheticDataset(self.pool, self.budget, metainfo=self._metainfo)
        except FileNotFoundError:
            if self.budget is not None:
                raise
            MMLogger.get_current_instance().warning(
                f'[gap] pool={self.pool!r} has no samples yet: all that is trained on is real'
            )
            return
        synthetic.read_with(self._pipeline())
        self._synthetic = synthetic

    def _pipeline(self) -> Compose:
        """What generated samples go through: the same as real ones.

        Raises:
            ValueError: If the wrapped datasets have none, or different ones.
        """
        own = getattr(self.dataset, 'pipeline', None)
        if own is not None and not isinstance(own, Compose):
            raise ValueError(
                f'{type(self.dataset).__name__} has a pipeline of its own, which generated images '
                'would not pass; put SyntheticMixDataset inside of it, around the dataset'
            )
        found = {}
        for part in innermost(self.dataset):
            pipeline = getattr(part, 'pipeline', None)
            if not isinstance(pipeline, Compose):
                raise ValueError(f'{type(part).__name__} has no pipeline for generated images')
            found[', '.join(described(t) for t in pipeline.transforms)] = pipeline
        if len(found) > 1:
            raise ValueError(
                f'the datasets inside {type(self.dataset).__name__} have {len(found)} different '
                'pipelines, and generated images can go through one; give them the same, or put '
                'SyntheticMixDataset around one of them'
            )
        (pipeline,) = found.values()
        return pipeline

    @force_full_init
    def __len__(self) -> int:
        if self.mode == 'replace':
            return self._num_real
        return round(self._num_real / (1 - self.ratio))

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Annotation of place ``idx``: in mode ``replace`` always that of the real sample."""
        if idx >= self._num_real and self._synthetic is not None:
            return self._synthetic.get_data_info(self._slot(idx))
        return self.dataset.get_data_info(idx % self._num_real)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Classes of place ``idx``, which MMEngine's ClassBalancedDataset asks for."""
        return self.dataset.get_cat_ids(idx % self._num_real)

    @force_full_init
    def __getitem__(self, idx: int) -> Any:
        if self._synthetic is not None:
            if idx >= self._num_real:
                return self._synthetic[self._slot(idx)]
            if self.paired:
                own = self._redraws_of(idx)
                if own and np.random.random() < self.ratio:
                    return self._synthetic[own[np.random.randint(len(own))]]
            elif self.mode == 'replace' and np.random.random() < self.ratio:
                return self._synthetic[np.random.randint(len(self._synthetic))]
        return self.dataset[idx % self._num_real]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch, see :func:`batch_of`."""
        return batch_of(self, self, indices)

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        """Not supported, as in MMEngine's wrappers: a subset of a mix is ambiguous."""
        raise NotImplementedError(
            'SyntheticMixDataset does not support get_subset_; put what takes the subset inside of '
            'it: dict(type="mmgap.SyntheticMixDataset", dataset=dict(type="KFoldDataset", …))'
        )

    def get_subset(self, indices: Sequence[int] | int) -> BaseDataset:
        """Not supported, see :meth:`get_subset_`."""
        raise NotImplementedError(
            'SyntheticMixDataset does not support get_subset; put what takes the subset inside of '
            'it: dict(type="mmgap.SyntheticMixDataset", dataset=dict(type="KFoldDataset", …))'
        )

    def pair(self) -> None:
        """Put images in the place of their own sources from here on, see ``paired``.

        Raises:
            ValueError: If the pool's images were not drawn around samples of this dataset.
        """
        if any(
            self.generated.get_data_info(i)['prompt_id'] == REAL for i in range(len(self.generated))
        ):
            raise ValueError(
                f'pool={self.pool!r} has real images, which were not drawn around anything; '
                "injection mode='replace' needs generated ones"
            )
        self.paired = True
        self._redraws_of(0)  # in this process, not in each worker

    def _redraws_of(self, idx: int) -> list[int]:
        """The pool's samples that were drawn around the real sample of a place."""
        if self._redraws is None:
            by_source: dict[int, list[int]] = {}
            for i in range(self.num_synthetic):
                info = self.generated.get_data_info(i)
                by_source.setdefault(info['source_index'], []).append(i)
            numbers = list(range(self._num_real))  # of a dataset without wrappers
            if parts_of(self.dataset):
                numbers = Distinct(self.dataset).numbers
            self._check_sources(by_source, numbers)
            self._redraws = {i: by_source.get(number, []) for i, number in enumerate(numbers)}
        return self._redraws[idx]

    def _check_sources(self, by_source: dict[int, list[int]], numbers: Sequence[int]) -> None:
        """See that images were drawn around what is here, as far as number and class tell."""
        places = {number: place for place, number in enumerate(numbers)}
        for number, images in by_source.items():
            found = self.dataset.get_data_info(places[number]) if number in places else {}
            own = self.generated.get_data_info(images[0])
            drawn, real = (np.ravel(info.get('gt_label', ())).tolist() for info in (own, found))
            if not found or drawn != real:
                what = f'of class {real[0]}' if real else 'not there'
                own_class = f' of class {drawn[0]}' if drawn else ''
                raise ValueError(
                    f'{own["img_path"]} was drawn around sample {number}{own_class}, which is '
                    f'{what} in the training data: '
                    f'pool={self.pool!r} was drawn for other data, or for another part or order of '
                    'them, and cannot take the places of its sources'
                )

    def _slot(self, idx: int) -> int:
        return (idx - self._num_real) % self.num_synthetic


def mixes_in(dataset: Any) -> list[SyntheticMixDataset]:
    """The mixes in a dataset and in MMEngine's wrappers around it."""
    if isinstance(dataset, SyntheticMixDataset):
        return [dataset]
    return [mix for part in parts_of(dataset) for mix in mixes_in(part)]


@contextmanager
def real_only(dataset: Any) -> Iterator[None]:
    """Hide the pools of the mixes in a dataset."""
    mixes = mixes_in(dataset)
    hidden = [mix._synthetic for mix in mixes]
    try:
        for mix in mixes:
            mix._synthetic = None
        yield
    finally:
        for mix, synthetic in zip(mixes, hidden, strict=True):
            mix._synthetic = synthetic


def batch_of(mix: SyntheticMixDataset, dataset: Any, indices: Sequence[int]) -> list[Any]:
    """A batch, whose random draws depend on (seed, epoch, indices) alone when a seed is set.

    PyTorch's loaders ask for whole batches where they can. The same batch then comes out of any
    worker, also in a run that was interrupted and resumed.

    Args:
        mix: Has seed and epoch.
        dataset: The mix, or what is wrapped around it.
        indices: Places in ``dataset``, plus its length for each pass of an endless loop so far.
    """
    places = [idx % len(dataset) for idx in indices]
    if mix.seed is None:
        return [dataset[place] for place in places]
    own = () if mix.rank is None else ('rank', mix.rank)
    with seeded(derive_seed(mix.seed, mix.epoch, *indices, *own)):
        return [dataset[place] for place in places]
