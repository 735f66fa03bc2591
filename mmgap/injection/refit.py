# SPDX-License-Identifier: Apache-2.0
"""Refit: at the end of training, a model is fitted to generated images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmgap.datasets.synthetic import SyntheticDataset
from mmgap.distributed import broadcast_object
from mmgap.files import fingerprint, plain, weights_fingerprint, write_bytes
from mmgap.injection.batches import RefitBatches, infos_of, label_type_of, missing_classes
from mmgap.injection.settings import InjectionSettings
from mmgap.injection.weighting import SampleWeights
from mmgap.optimizer_state import build_optimizer, load_optimizer_state, optimizer_state
from mmgap.seeds import derive_seed, preserved_rng, seeded

# Batches between two savings, and between two lines in the log.
EVERY = 25
# Images of each class, over all steps, below which a refit warns.
FEW = 100
LAST_LAYERS = dict(classes='head.', depth='decode_head.conv_seg.')
# Share of its first value from which on the learning rate is high when images come.
HIGH_RATE = 0.5


class Refit:
    """Fits a model to generated images, and a little to real ones.

    A model with strong features tells generated images from real ones and, trained on a mix, learns
    for each kind what holds for it: the shortcut stays where it was. Fitted to images alone it has
    no such way out (as in deep feature reweighting, arXiv 2204.02937, on real images without the
    shortcut). Real samples with a weight of a hundredth keep it right on what training is like.

    The last layer begins anew, on features that are computed once: what it knew before is the
    shortcut, and steps are too few to forget it. The network as a whole goes on from what it is.
    :class:`~mmgap.injection.batches.RefitBatches` says what a batch is.

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
        settings = settings.for_labels(label_type)
        self.model = inner
        self.images = images
        self.settings = settings
        self.seed = seed
        self.last = settings.layers == 'last'
        # Of a module: its own parameters and those of its parts.
        self.prefix = (settings.last_layer or LAST_LAYERS[label_type]).rstrip('.') + '.'
        check_refit(self.model, settings, label_type)
        last = self.prefix.rstrip('.') if self.last else None
        self.batches = RefitBatches(model, images, real, settings, last, seed)
        check_classes(images, settings)
        shown = settings.steps * settings.batch_size / max(1, len(self.batches.cells))
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
            optimizer = build_optimizer(part, self.settings.refit_optimizer, 'injection')
            rates = [group['lr'] for group in optimizer.param_groups]
            first, losses = self._load(checkpoint, identity, optimizer)
            if first < self.settings.steps:
                loss_of = self.batches.loss()
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

    # Its checkpoint

    def _identity(self) -> dict[str, Any]:
        settings = plain({**vars(self.settings), 'mode': 'refit'})
        return dict(
            settings=fingerprint(settings),
            images=fingerprint([[i['img_path'], i['prompt_id']] for i in infos_of(self.images)]),
            pool=self.images.fingerprint(),
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
    settings = settings.for_labels(label_type)
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
    missing, reset = missing_classes(images), settings.for_labels(label_type_of(images)).reset
    if missing and settings.layers == 'last' and reset:
        raise ValueError(
            f'a refit begins the last layer anew, and there are no images of {missing[:5]} '
            f'({len(missing)} classes), which it would forget; draw images of all classes, or set '
            'injection reset=False, or another mode'
        )


def rate_note(
    model: nn.Module, settings: InjectionSettings, label_type: str, rate: float
) -> str | None:
    """What a refit is worth less for: a whole network that is trained on the images at a high rate.

    Measured for classes alone: a worst group of 0.42 to 0.75 at the constant rate, 0.87 to 0.93
    where it falls tenfold before the images come (docs/injection.md).

    Args:
        model: The model, without its wrapper.
        settings: Those of the injection, of mode ``'refit'`` or ``'auto'``.
        label_type: ``'classes'`` or ``'depth'``.
        rate: Learning rate when images come, as a share of that of the beginning.

    Returns:
        The note; None where there is nothing to say.
    """
    prefix = (settings.last_layer or LAST_LAYERS['classes']).rstrip('.') + '.'
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    whole = any(not name.startswith(prefix) for name in trained)
    if settings.mode not in ('refit', 'auto') or label_type != 'classes':
        return None
    if not whole or rate < HIGH_RATE:
        return None
    return (
        f'when images come, the learning rate is still {rate:.0%} of what training begins with: at '
        'a high rate a whole network learns images by heart, and a refit at its end is worth less. '
        "Let the rate fall before, by param_scheduler, say dict(type='MultiStepLR', "
        'milestones=[start of the hook], gamma=0.1)'
    )


def keep_statistics(model: nn.Module) -> None:
    """Put batch normalisation into eval mode: its statistics stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


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


def _log(message: str) -> None:
    MMLogger.get_current_instance().info(f'[gap] {message}')
