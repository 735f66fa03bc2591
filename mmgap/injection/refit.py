# SPDX-License-Identifier: Apache-2.0
"""Refit: at the end of training, a model is fitted to generated images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper, build_optim_wrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.distributed import all_gather_list, broadcast_object, shard
from mmgap.files import fingerprint, plain, weights_fingerprint, write_bytes
from mmgap.injection.settings import InjectionSettings
from mmgap.injection.weighting import SampleWeights
from mmgap.optimizer_state import load_optimizer_state, optimizer_state
from mmgap.seeds import derive_rng, derive_seed, preserved_rng, seeded

# Batches between two savings, and between two lines in the log.
EVERY = 25
# Real samples for each generated one in a batch; their weight does not depend on it.
REAL_SHARE = 0.5
# Real samples whose features are computed for a refit of the last layer.
REAL_FEATURES = 1000
# Times that the training pipeline shows it each generated image.
VIEWS = 2
# Images of each class, over all steps, below which a refit warns.
FEW = 100
LAST_LAYERS = dict(classes='head.', depth='decode_head.conv_seg.')


class Refit:
    """Fits a model to generated images, and a little to real ones.

    A model with strong features tells generated images from real ones and, trained on a mix, learns
    for each kind what holds for it: the shortcut stays where it was. Fitted to images alone it has
    no such way out (as in deep feature reweighting, arXiv 2204.02937, on real images without the
    shortcut). Real samples with a weight of a hundredth keep it right on what training is like.

    Each batch has as many images of every class, and within a class of every prompt; for depth, of
    every prompt. With more classes than images in a batch, they take turns.

    The last layer begins anew, on features that are computed once: what it knew before is the
    shortcut, and steps are too few to forget it. The network as a whole goes on from what it is.

    Args:
        model: The model, also wrapped for several processes.
        images: The generated images, with the training's pipeline.
        real: The real training data.
        settings: See :class:`~mmgap.injection.InjectionSettings`.
        label_type: ``'classes'`` or ``'depth'``.
        seed: Of all draws.

    Raises:
        ValueError: If the last layer's name names no parameter, its loss takes no weights, or it
            would begin anew and there are classes without images.
    """

    def __init__(
        self,
        model: nn.Module,
        images: SyntheticDataset,
        real: Any,
        settings: InjectionSettings,
        label_type: str = 'classes',
        seed: int = 0,
    ) -> None:
        self.wrapped = model
        inner: Any = model.module if is_model_wrapper(model) else model
        self.model = inner
        self.images = images
        self.real = real
        self.settings = settings
        self.seed = seed
        self.last = settings.layers == 'last'
        # Of a module: its own parameters and those of its parts.
        self.prefix = (settings.last_layer or LAST_LAYERS[label_type]).rstrip('.') + '.'
        check_refit(self.model, settings, label_type)
        self.weights = SampleWeights(self.model) if settings.real else None
        self.cells = _cells(images)
        check_classes(images, settings)
        shown = settings.steps * settings.batch_size / max(1, len(self.cells))
        if shown < FEW:
            _log(
                f'a refit of {settings.steps} steps shows {shown:.0f} images of each class, which '
                'is few for a layer: raise injection steps or batch_size'
            )

    def run(self, checkpoint: Path | None = None) -> dict[str, Any]:
        """Fit; goes on from the checkpoint of a refit that was interrupted.

        The model's modes, and which of its parameters are trained, are as before afterwards.

        Args:
            checkpoint: File that it saves itself to. One of another refit is not used.

        Returns:
            ``images``, ``steps``, and ``loss``, the mean of the last steps.
        """
        identity = self._identity()
        with preserved_rng(), self._in_training():
            part = self.model.get_submodule(self.prefix.rstrip('.')) if self.last else self.model
            if self.last and self.settings.reset:
                _begin_anew(part, derive_seed(self.seed, 'refit', 'last layer'))
            optimizer = build_optim_wrapper(part, self.settings.refit_optimizer)
            rates = [group['lr'] for group in optimizer.param_groups]
            first, losses = self._load(checkpoint, identity, optimizer)
            if first < self.settings.steps:
                loss_of = self._cached() if self._cacheable else self._batches()
                for step in range(first, self.settings.steps):
                    factor = (1 + math.cos(math.pi * step / self.settings.steps)) / 2
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group['lr'] = rate * factor
                    torch.manual_seed(derive_seed(self.seed, 'refit', step))  # dropout
                    with optimizer.optim_context(self.wrapped):
                        loss = loss_of(step)
                    optimizer.update_params(loss)
                    losses = [*losses, float(loss.detach())][-EVERY:]
                    if not math.isfinite(losses[-1]):
                        raise ValueError(f'the loss of the refit is {losses[-1]} at step {step}')
                    if (step + 1) % EVERY == 0 or step + 1 == self.settings.steps:
                        self._save(checkpoint, identity, optimizer, step + 1, losses)
                        _log(f'refit step {step + 1}: loss {np.mean(losses):.3f}')
            for value in self._trained().values():  # the same to the last bit in all processes
                dist.broadcast(value)
        return dict(images=len(self.images), steps=self.settings.steps, loss=float(np.mean(losses)))

    @contextmanager
    def _in_training(self) -> Iterator[None]:
        """What is fitted in training mode, the rest fixed; all as before afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        flags = [(name, p, p.requires_grad) for name, p in self.model.named_parameters()]
        # With accumulative_counts, of training's last batches.
        waiting = [p.grad for _, p, _ in flags]
        try:
            self.model.zero_grad()
            self.wrapped.train(not self.last)
            if self.last:
                self.model.get_submodule(self.prefix.rstrip('.')).train()
                for name, parameter, _ in flags:
                    parameter.requires_grad_(name.startswith(self.prefix))
            elif self.settings.norm_eval:
                keep_statistics(self.model)
            yield
        finally:
            for (_, parameter, flag), gradient in zip(flags, waiting, strict=True):
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            for module, mode in modes:
                module.training = mode

    # Batches

    def _draw(self, step: int) -> tuple[list[int], list[int], list[float]]:
        """Images and real samples of a step, and the weights of both, in this order."""
        rng = derive_rng(self.seed, 'refit', step)
        count = self.settings.batch_size
        offset = int(rng.integers(len(self.cells)))
        order = range(len(self.cells))
        if len(self.cells) > count:  # a class's turn comes once in a pass over all
            offset, order = step * count, self._order(step * count // len(self.cells))
        images = []
        for i in range(count):
            prompts = self.cells[order[(offset + i) % len(self.cells)]]
            cell = prompts[int(rng.integers(len(prompts)))]
            images.append(cell[int(rng.integers(len(cell)))])
        if not self.settings.real:
            return images, [], [1.0] * count
        real = [int(i) for i in rng.integers(self._num_real, size=max(1, int(count * REAL_SHARE)))]
        both = count + len(real)  # a loss is divided by it
        weights = [both / count] * count + [self.settings.real * both / len(real)] * len(real)
        return images, real, weights

    def _order(self, turn: int) -> Any:
        return derive_rng(self.seed, 'refit', 'classes', turn).permutation(len(self.cells))

    @property
    def _num_real(self) -> int:
        return min(len(self.real), REAL_FEATURES) if self._cacheable else len(self.real)

    @property
    def _cacheable(self) -> bool:
        """Whether the last layer is a classifier's head, which features can be handed to."""
        return (
            self.last
            and self.prefix.startswith('head.')
            and hasattr(self.model, 'extract_feat')
            and hasattr(getattr(self.model, 'head', None), 'loss')
        )

    def _batches(self) -> Callable[[int], Tensor]:
        """The loss of a step, through the whole network."""

        def loss_of(step: int) -> Tensor:
            images, real, weights = self._draw(step)
            drawn = [(self.images, i) for i in images] + [(self.real, i) for i in real]
            # The wrapper for several processes was made for all parameters, so each process does
            # all of what the last layer alone needs.
            places: Sequence[int] = range(len(drawn))
            model = self.model
            if not self.last:  # each process has a part of both kinds
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
            images, real, weights = self._draw(step)
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

    # Its checkpoint

    def _identity(self) -> dict[str, Any]:
        settings = plain({**vars(self.settings), 'mode': 'refit'})
        return dict(
            settings=fingerprint(settings),
            images=fingerprint([[i['img_path'], i['prompt_id']] for i in _infos(self.images)]),
            model=weights_fingerprint(self.model),
            seed=self.seed,
        )

    def _trained(self) -> dict[str, Tensor]:
        prefix = self.prefix if self.last else ''
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(prefix)}

    def _save(
        self,
        path: Path | None,
        identity: Mapping[str, Any],
        optimizer: OptimWrapper,
        step: int,
        losses: Sequence[float],
    ) -> None:
        if path is None or not dist.is_main_process():  # all have the same weights
            return
        tensors, state = optimizer_state(optimizer.optimizer)
        tensors.update({f'model/{name}': value for name, value in self._trained().items()})
        tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
        scaler = getattr(optimizer, 'loss_scaler', None)  # of AmpOptimWrapper
        meta = dict(
            state,
            identity=identity,
            step=step,
            losses=list(losses),
            scaler=None if scaler is None else scaler.state_dict(),
        )
        write_bytes(path, save(tensors, metadata={'refit': json.dumps(meta, sort_keys=True)}))

    def _load(
        self, path: Path | None, identity: Mapping[str, Any], optimizer: OptimWrapper
    ) -> tuple[int, list[float]]:
        """Steps that are done and their losses; weights and optimiser are put in place."""
        # The main process alone may see the file, and all must go the same way.
        saved = broadcast_object(_read(path, identity) if dist.is_main_process() else None)
        if saved is None:
            return 0, []
        meta, tensors = saved
        trained = self._trained()
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(tensors[f'model/{name}'])
        load_optimizer_state(optimizer.optimizer, tensors, meta)
        if meta['scaler'] is not None and hasattr(optimizer, 'loss_scaler'):
            optimizer.loss_scaler.load_state_dict(meta['scaler'])
        _log(f'the refit goes on after step {meta["step"]} of {self.settings.steps}')
        return meta['step'], meta['losses']


def _read(path: Path | None, identity: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]] | None:
    """What a refit's checkpoint holds; None, with the reason in the log, if it is of no use."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            meta = json.loads(file.metadata()['refit'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, TypeError, KeyError, ValueError):
        _log(f'{path} is damaged or of another version of mmgap; the refit begins anew')
        return None
    if meta['identity'] != identity:
        _log(f'{path} is of another refit; it begins anew')
        return None
    return meta, tensors


def check_refit(model: nn.Module, settings: InjectionSettings, label_type: str) -> None:
    """See, before there are images, that a model can be refitted.

    Raises:
        ValueError: If the last layer's name names no parameter, or its loss takes no weights.
    """
    prefix = settings.last_layer or LAST_LAYERS[label_type]
    names = [name for name, _ in model.named_parameters()]
    path = prefix.rstrip('.')
    if settings.layers == 'last' and not any(name.startswith(f'{path}.') for name in names):
        raise ValueError(
            f'injection last_layer={prefix!r} names no parameter of the model; those at its end '
            f'are {names[-2:]}'
        )
    if settings.real:
        SampleWeights(model)


def check_classes(images: SyntheticDataset, settings: InjectionSettings) -> None:
    """See that a last layer that begins anew does not forget a class.

    Raises:
        ValueError: If there is a class without images.
    """
    missing = missing_classes(images)
    if missing and settings.layers == 'last' and settings.reset:
        raise ValueError(
            f'a refit begins the last layer anew, and there are no images of {missing[:5]} '
            f'({len(missing)} classes), which it would forget; draw images of all classes, or set '
            'injection reset=False, or another mode'
        )


def keep_statistics(model: nn.Module) -> None:
    """Put batch normalisation into eval mode: its statistics stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def missing_classes(images: SyntheticDataset) -> list[str]:
    """Names of the classes that have no image; none for depth, or where names are not known."""
    classes = images.metainfo.get('classes') or ()
    labels = {info.get('gt_label') for info in _infos(images)}
    return [] if None in labels else [c for i, c in enumerate(classes) if i not in labels]


def _infos(images: SyntheticDataset) -> list[dict[str, Any]]:
    return [images.get_data_info(i) for i in range(len(images))]


def _cells(images: SyntheticDataset) -> list[list[list[int]]]:
    """Indices of images by class, or together for depth, and within by prompt."""
    cells: dict[Any, dict[str, list[int]]] = {}
    for i, info in enumerate(_infos(images)):
        cells.setdefault(info.get('gt_label'), {}).setdefault(info['prompt_id'], []).append(i)
    return [list(prompts.values()) for _, prompts in sorted(cells.items(), key=str)]


def _begin_anew(part: nn.Module, seed: int) -> None:
    """Give a layer the weights that layers of its kind, and then the head itself, begin with."""
    with seeded(seed):  # many heads have no init_cfg
        for module in part.modules():
            reset = getattr(module, 'reset_parameters', None)
            if reset is not None:
                reset()
    if isinstance(part, BaseModule):
        for module in part.modules():
            if isinstance(module, BaseModule):
                module._is_init = False  # MMEngine initialises a module only once
        with seeded(seed):
            part.init_weights()


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


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(f'[gap] {message}')
