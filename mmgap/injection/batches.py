# SPDX-License-Identifier: Apache-2.0
"""Batches of a refit: generated images in balance, and a few real samples beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.distributed import all_gather_list, shard
from mmgap.injection.settings import InjectionSettings
from mmgap.injection.weighting import SampleWeights
from mmgap.seeds import derive_rng, derive_seed, seeded

# Real samples for each generated one in a batch; their weight does not depend on it.
REAL_SHARE = 0.5
# Real samples whose features are computed for a refit of the last layer.
REAL_FEATURES = 1000
# Times that the training pipeline shows it each generated image.
VIEWS = 2


class RefitBatches:
    """The loss of each step of a refit.

    Each batch has as many images of every class, and within a class of every prompt; for depth, of
    every prompt. With more classes than images in a batch, they take turns. The last layer of a
    classifier gets features that are computed once.

    Args:
        model: The model, also wrapped for several processes.
        images: The generated images, with the training's pipeline.
        real: The real training data.
        settings: See :class:`~mmgap.injection.InjectionSettings`.
        last: Name of the last layer in the model; None for a refit of the whole network.
        seed: Of all draws.

    Raises:
        ValueError: If real samples have a weight and the model's loss takes none.
    """

    def __init__(
        self,
        model: nn.Module,
        images: SyntheticDataset,
        real: Any,
        settings: InjectionSettings,
        last: str | None,
        seed: int,
    ) -> None:
        inner: Any = model.module if is_model_wrapper(model) else model
        self.wrapped, self.model = model, inner
        self.images = images
        self.real = real
        self.settings = settings
        self.last = last
        self.seed = seed
        self.weights = SampleWeights(self.model) if settings.real else None
        self.cells = _cells(images)

    def loss(self) -> Callable[[int], Tensor]:
        """What gives the loss of a step, a scalar with its graph."""
        return self._cached() if self._cacheable else self._through()

    def draw(self, step: int) -> tuple[list[int], list[int], list[float]]:
        """Numbers of a step's images and real samples, and the weights of both, in this order."""
        rng = derive_rng(self.seed, 'refit', step)
        count = self.settings.batch_size
        number = len(self.cells)
        offset = int(rng.integers(number))
        places = [(offset + i) % number for i in range(count)]
        if number > count:  # a class's turn comes once in a pass over all
            places = self._turns(step * count, count)
        images = []
        for place in places:
            prompts = self.cells[place]
            cell = prompts[int(rng.integers(len(prompts)))]
            images.append(cell[int(rng.integers(len(cell)))])
        if not self.settings.real:
            return images, [], [1.0] * count
        real = [int(i) for i in rng.integers(self._num_real, size=max(1, int(count * REAL_SHARE)))]
        both = count + len(real)  # a loss is divided by it
        weights = [both / count] * count + [self.settings.real * both / len(real)] * len(real)
        return images, real, weights

    def _turns(self, first: int, count: int) -> list[int]:
        """Classes in turn, in another order in each pass."""
        number = len(self.cells)
        passes = {
            turn: derive_rng(self.seed, 'refit', 'classes', turn).permutation(number)
            for turn in range(first // number, (first + count - 1) // number + 1)
        }
        return [int(passes[i // number][i % number]) for i in range(first, first + count)]

    @property
    def _num_real(self) -> int:
        return min(len(self.real), REAL_FEATURES) if self._cacheable else len(self.real)

    @property
    def _cacheable(self) -> bool:
        """Whether the last layer is a classifier's head, which features can be handed to."""
        return (
            self.last is not None
            and self.last.split('.')[0] == 'head'
            and hasattr(self.model, 'extract_feat')
            and hasattr(getattr(self.model, 'head', None), 'loss')
        )

    def _through(self) -> Callable[[int], Tensor]:
        """The loss of a step, through the whole network."""

        def loss_of(step: int) -> Tensor:
            images, real, weights = self.draw(step)
            drawn = [(self.images, i) for i in images] + [(self.real, i) for i in real]
            # The wrapper for several processes was made for all parameters, so each process does
            # all of what the last layer alone needs.
            places: Sequence[int] = range(len(drawn))
            model = self.model
            if self.last is None:  # each process has a part of both kinds
                order = derive_rng(self.seed, 'refit', step, 'order').permutation(len(drawn))
                places, model = order[shard(len(drawn))].tolist(), self.wrapped
            batch = []
            for place in places:
                dataset, i = drawn[place]
                with seeded(derive_seed(self.seed, 'refit', step, place)):
                    batch.append(dataset[i])
            data = self.model.data_preprocessor(pseudo_collate(batch), False)
            own = [weights[place] for place in places]
            return self._weighted(own, lambda: model(**data, mode='loss'))

        return loss_of

    def _cached(self) -> Callable[[int], Tensor]:
        """The loss of a step, from features that are computed once."""
        order = derive_rng(self.seed, 'refit', 'real').permutation(len(self.real))
        real = [int(i) for i in order[: self._num_real]] if self.settings.real else []
        views = [(i, view) for i in range(len(self.images)) for view in range(VIEWS)]
        features, samples = self._features(
            [(self.images, i, view) for i, view in views] + [(self.real, i, 0) for i in real]
        )

        def loss_of(step: int) -> Tensor:
            images, real, weights = self.draw(step)
            drawn = derive_rng(self.seed, 'refit', step, 'view').integers(VIEWS, size=len(images))
            rows = [VIEWS * i + int(view) for i, view in zip(images, drawn, strict=True)]
            rows += [len(views) + i for i in real]
            chosen = _rows(features, rows)
            return self._weighted(
                weights, lambda: self.model.head.loss(chosen, [samples[row] for row in rows])
            )

        return loss_of

    def _weighted(self, weights: Sequence[float], losses: Callable[[], Any]) -> Tensor:
        if self.weights is None:
            return self.model.parse_losses(losses())[0]
        with self.weights.weighting(weights):
            return self.model.parse_losses(losses())[0]

    @torch.no_grad()
    def _features(self, wanted: Sequence[tuple[Any, int, int]]) -> tuple[Any, list[Any]]:
        """What the head gets of samples, and their labels; each process computes a part."""
        own = list(wanted)[shard(len(wanted))]
        parts, samples = [], []
        for start in range(0, len(own), self.settings.batch_size):
            batch = []
            for dataset, i, view in own[start : start + self.settings.batch_size]:
                kind = 'image' if dataset is self.images else 'real'
                with seeded(derive_seed(self.seed, 'refit', kind, i, view)):
                    batch.append(dataset[i])
            data = self.model.data_preprocessor(pseudo_collate(batch), False)
            parts.append(self.model.extract_feat(data['inputs']))
            samples += data['data_samples']
        device = next(self.model.parameters()).device
        gathered = all_gather_list([_to(part, torch.device('cpu')) for part in parts])
        everyone = all_gather_list([sample.cpu() for sample in samples])
        return _to(_join(gathered), device), [sample.to(device) for sample in everyone]


def missing_classes(images: SyntheticDataset) -> list[str]:
    """Names of the classes that have no image; none for depth, or where names are not known."""
    classes = images.metainfo.get('classes') or ()
    labels = {info.get('gt_label') for info in infos_of(images)}
    return [] if None in labels else [c for i, c in enumerate(classes) if i not in labels]


def label_type_of(images: SyntheticDataset) -> str:
    """``'classes'`` or ``'depth'``."""
    return 'classes' if images.depth_unit is None else 'depth'


def infos_of(images: SyntheticDataset) -> list[dict[str, Any]]:
    """The data info of each generated image."""
    return [images.get_data_info(i) for i in range(len(images))]


def _cells(images: SyntheticDataset) -> list[list[list[int]]]:
    """Indices of images by class, or together for depth, and within by prompt."""
    cells: dict[Any, dict[str, list[int]]] = {}
    for i, info in enumerate(infos_of(images)):
        cells.setdefault(info.get('gt_label'), {}).setdefault(info['prompt_id'], []).append(i)
    return [list(prompts.values()) for _, prompts in sorted(cells.items(), key=str)]


def _rows(features: Any, rows: Sequence[int]) -> Any:
    """Some samples of features, in whatever lists they come."""
    if isinstance(features, (list, tuple)):
        return type(features)(_rows(part, rows) for part in features)
    return features[torch.as_tensor(rows, device=features.device)]


def _to(features: Any, device: torch.device) -> Any:
    if isinstance(features, (list, tuple)):
        return type(features)(_to(part, device) for part in features)
    return features.to(device)


def _join(batches: Sequence[Any]) -> Any:
    """Batches of features as one."""
    first = batches[0]
    if isinstance(first, (list, tuple)):
        return type(first)(_join(parts) for parts in zip(*batches, strict=True))
    return torch.cat(list(batches))
