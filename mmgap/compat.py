# SPDX-License-Identifier: Apache-2.0
"""Workarounds for upstream behaviour, each with its cause and when it can go."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import inspect
import itertools
import logging
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import init_dist
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.runner import checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmgap.files import write_bytes


def differentiable_call(pipeline: Any) -> Callable[..., Any]:
    """The ``__call__`` of a diffusers pipeline without its ``torch.no_grad``.

    Cause: diffusers decorates every ``__call__`` with ``torch.no_grad()``, whose wrapper keeps the
    plain function in ``__wrapped__``. Can go when diffusers offers a differentiable call.

    Raises:
        RuntimeError: If the installed diffusers no longer wraps its call like this.
    """
    call = type(pipeline).__call__
    inner = getattr(call, '__wrapped__', None)
    if inner is None or 'prompt_embeds' not in inspect.signature(inner).parameters:
        import diffusers

        raise RuntimeError(
            f'{type(pipeline).__name__}.__call__ of diffusers {diffusers.__version__} is not '
            'wrapped in torch.no_grad as mmgap expects; use diffusers 0.42'
        )
    return inner.__get__(pipeline)


def start_processes(launcher: str, config: Config) -> None:
    """Join the process group of a distributed run, on machines without a GPU too.

    Cause: MMEngine 0.10.7's ``init_dist`` sets the CUDA device whatever the backend is, and its
    Runner names a device to the model's wrapper; both fail where there is none. The Runner takes a
    process group and a wrapper's config that are there as they are. Can go when both leave devices
    alone for gloo.

    Args:
        launcher: ``'none'``, ``'pytorch'`` (torchrun) or ``'slurm'``, as MMEngine has them.
        config: Its ``env_cfg.dist_cfg`` holds on GPUs; without one the backend is gloo, and
            ``model_wrapper_cfg`` is set if it says nothing.

    Raises:
        ValueError: If there is no GPU and the launcher is neither ``'none'`` nor ``'pytorch'``, or
            the processes were not started by it.
    """
    if launcher == 'none':
        return
    if launcher == 'pytorch' and not {'RANK', 'MASTER_ADDR'} <= set(os.environ):
        raise ValueError(
            "launcher 'pytorch' needs torchrun: torchrun --nproc_per_node=N -m mmgap COMMAND …"
        )
    if torch.cuda.is_available():
        settings = (config.get('env_cfg') or {}).get('dist_cfg') or {}
        init_dist(launcher, **{'backend': 'nccl', **settings})
        return
    if launcher != 'pytorch':
        raise ValueError(f"launcher {launcher!r} needs GPUs; on CPUs use 'pytorch' with torchrun")
    torch.distributed.init_process_group('gloo')
    # Else its threads outlive the interpreter now and then, and a run that is done ends in SIGABRT.
    atexit.register(torch.distributed.destroy_process_group)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    wrapper.update(find_unused_parameters=config.get('find_unused_parameters', False))
    config.setdefault('model_wrapper_cfg', dict(wrapper, device_ids=None))


def keep_ddim_finite(scheduler: Any, eta: float) -> None:
    """Keep DDIM from drawing NaN where the rounding of its noise leaves less than nothing.

    Cause: DDIM takes the root of ``1 - a_prev - std**2``. At the first step of a schedule with zero
    terminal SNR and ``eta=1`` that is 0, and rounded it is about -6e-8 for some numbers of steps,
    which depend on the processor. There the variance is taken to the nearest lower number until it
    is not negative; all other values stay as they are, bit for bit. Can go when diffusers clamps.

    Args:
        scheduler: Any scheduler, changed in place; others than DDIM stay as they are.
        eta: The noise that it will be told to add, 0 to 1.
    """
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    ddim = isinstance(scheduler, (DDIMScheduler, DDIMParallelScheduler))
    if eta == 0 or not ddim:
        return
    stock = scheduler._get_variance

    def variance(timestep: int, prev_timestep: int) -> Tensor:
        value, alphas = stock(timestep, prev_timestep), scheduler.alphas_cumprod
        before = alphas[prev_timestep] if prev_timestep >= 0 else scheduler.final_alpha_cumprod
        for _ in range(4):  # without asking, so that a GPU need not be waited for
            lower = torch.nextafter(value, torch.zeros_like(value))
            value = torch.where(1 - before - (eta * value**0.5) ** 2 < 0, lower, value)
        return value

    scheduler._get_variance = variance


def keep_timesteps_on_cpu(scheduler: Any, networks: Sequence[nn.Module]) -> None:
    """Let a scheduler look up its tables without waiting for the GPU.

    Cause: pipelines put the timesteps on the GPU, and schedulers index tables with them and compare
    them with numbers, each of which waits until the GPU has done all its work. Can go when
    pipelines keep them on the CPU.

    Args:
        scheduler: Any scheduler, changed in place.
        networks: What is called with a timestep as the second argument, changed in place: each
            writes it to its own device, where a copy would wait.
    """
    stock = scheduler.set_timesteps

    @functools.wraps(stock)
    def set_timesteps(*args: Any, device: Any = None, **kwargs: Any) -> None:
        stock(*args, device='cpu', **kwargs)

    scheduler.set_timesteps = set_timesteps
    for network in networks:
        network.register_forward_pre_hook(_write_timestep)


def _write_timestep(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if len(args) < 2 or not isinstance(args[1], Tensor) or args[1].device == args[0].device:
        return None
    sample, time, *others = args
    return sample, torch.full((), time.item(), dtype=time.dtype, device=sample.device), *others


def keep_device_known(pipeline: Any) -> None:
    """Let a pipeline know where it runs without looking for it at each call.

    Cause: ``_execution_device`` walks through all modules of all networks for the hooks of
    offloading, which mmgap sets none of; on a GPU that waits meanwhile. Can go when diffusers
    remembers it.

    Args:
        pipeline: Any pipeline, changed in place; its class has the same name and parents.
    """
    kind = type(pipeline)
    known = property(lambda self: next(self.unet.parameters()).device)
    pipeline.__class__ = type(
        kind.__name__, (kind,), dict(_execution_device=known, __module__=kind.__module__)
    )


def silence_empty_cast_warning() -> None:
    """Drop diffusers' warning about modules to be kept in float32 where it names none.

    Cause: ``ModelMixin.to`` of diffusers 0.42 gives it whether there are such modules or not, and
    the pipelines of Stable Diffusion XL cast their VAE in every call. Can go when it is given only
    where there are some.
    """
    logging.getLogger('diffusers.models.modeling_utils').addFilter(_names_modules)


def _names_modules(record: logging.LogRecord) -> bool:
    return 'should be kept in float32: []' not in str(record.msg)


def replace_dataset(loader: DataLoader, dataset: Any) -> None:
    """Give a built DataLoader another dataset of the same length.

    Cause: MMEngine builds loop, sampler and schedule before any hook runs, and a DataLoader
    refuses to have its ``dataset`` set. The sampler only reads the length, which stays. Can go if
    MMEngine lets a hook see the loader's config first.

    Raises:
        ValueError: If the lengths differ.
    """
    before: Any = loader.dataset  # its type does not say that it has a length
    if len(before) != len(dataset):
        raise ValueError(f'the loader was built for {len(before)} samples, got {len(dataset)}')
    object.__setattr__(loader, 'dataset', dataset)


def keep_dataset_copies_apart() -> None:
    """Let each copy of a dataset, as of its subsets, be one of that dataset alone.

    Cause: ``BaseDataset._copy_without_annotation`` of MMEngine 0.10.7 keeps what it has copied in a
    default argument, by the address of the dataset. Whatever lies at that address once the dataset
    is gone, as a transform of another, comes out of a later copy as the earlier dataset: in
    trainings on MMPretrain's KFoldDataset, now and then. Can go when each copy starts anew, as in
    onedl-mmengine.
    """
    plain = BaseDataset._copy_without_annotation
    if not any(isinstance(default, dict) for default in plain.__defaults__ or ()):
        return

    @functools.wraps(plain)
    def copy_alone(self: BaseDataset, memo: dict[int, Any] | None = None) -> BaseDataset:
        return plain(self, {} if memo is None else memo)

    BaseDataset._copy_without_annotation = copy_alone


def allow_nondeterministic_resize(logger: logging.Logger) -> None:
    """Let a run with ``randomness=dict(deterministic=True)`` search on a GPU.

    Cause: MMEngine makes PyTorch refuse all that has no deterministic kernel, as differentiating a
    bilinear resize on CUDA, which a model is asked through. Only warned of from here on. Can go
    when PyTorch has such a kernel.
    """
    refuses = torch.are_deterministic_algorithms_enabled()
    if torch.cuda.is_available() and refuses:
        torch.use_deterministic_algorithms(True, warn_only=True)
        logger.warning(
            '[gap] the search differentiates a resize, for which CUDA has no deterministic kernel: '
            'deterministic=True only warns from here on'
        )


def restart_workers(loader: DataLoader) -> None:
    """Make the next ``iter(loader)`` start new worker processes.

    Cause: workers hold a copy of the dataset from when they started, and persistent workers never
    see that it grew. Can go if DataLoader offers a reset.
    """
    loader._iterator = None


def restart_infinite_iterator(loop: Any, consumed: int) -> None:
    """Give an iteration-based loop new worker processes that go on after ``consumed`` batches.

    Cause: MMEngine's InfiniteSampler hands out one endless stream, of which the old workers have
    prefetched some batches already; a new iterator would skip those. It also names a sample alike
    in each pass, though its random draws shall be others: each index has the dataset's length on
    it for each pass before. Can go if MMEngine's iteration-based loop offers to restart its loader.

    Args:
        loop: MMEngine's IterBasedTrainLoop.
        consumed: Batches that training has used so far, the current one included.
    """
    loader = loop.dataloader
    restart_workers(loader)
    sampler = loader.sampler
    if hasattr(sampler, '_indices_of_rank'):
        samples = consumed * (loader.batch_size or loader.batch_sampler.batch_size)
        _go_to(sampler, samples)
        # The fork's loop asks for the place where a resumed run goes on, after the hooks.
        sampler.skip = functools.partial(_go_to, sampler)
    loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)


def _go_to(sampler: Any, samples: int) -> None:
    """Let an InfiniteSampler go on after so many of its samples."""
    sampler.indices = _with_passes(sampler, samples)


def _with_passes(sampler: Any, start: int) -> Iterator[int]:
    """An InfiniteSampler's indices from place ``start`` on, each plus size x passes before it."""
    stream = enumerate(sampler._indices_of_rank())
    for place, index in itertools.islice(stream, start, None):
        passes = (place * sampler.world_size + sampler.rank) // sampler.size
        yield index + sampler.size * passes


def leave_unformatted(config: Config) -> None:
    """Spare a config the formatting that MMEngine gives it each time it is logged or written.

    That takes 0.1 s and more, four times in a training. Cause: ``Config.fromfile`` of MMEngine
    0.10.7 forgets ``format_python_code=False`` for configs whose bases are names of files. Can go
    when it does not.
    """
    object.__setattr__(config, '_format_python_code', False)


def name_pretrained(settings: Any) -> None:
    """Write ``'Pretrained'`` for the class ``PretrainedInit`` in all ``init_cfg`` of a config.

    Cause: MMPretrain's ViT, Swin and 15 other backbones draw their position embedding anew after
    their weights are loaded unless ``init_cfg['type']`` is that word, so that a config of the new
    style trains on from a broken model. Can go when they ask for the class too, as MMEngine does.

    Args:
        settings: A config or a part of one, changed in place.
    """
    if isinstance(settings, (list, tuple)):
        for part in settings:
            name_pretrained(part)
    elif isinstance(settings, MutableMapping):
        if settings.get('type') is PretrainedInit:
            settings['type'] = 'Pretrained'
        for part in settings.values():
            name_pretrained(part)


def allow_checkpoint_history() -> None:
    """Let weights-only loading read the log history in MMEngine's checkpoints.

    Cause: torch 2.6 made ``torch.load`` weights-only, and MMEngine 0.10.7 pickles its
    ``HistoryBuffer`` into every checkpoint, so neither resume nor test can read them (fixed
    upstream by ``weights_only=False``, which runs whatever code a file contains). The classes that
    a log history consists of hold nothing but numbers, so those are allowed by name. ``getattr``
    is what pickle uses to find HistoryBuffer's own methods; it is replaced by one that does
    nothing else. Can go when MMEngine stores plain lists.
    """
    import numpy
    from mmengine.logging.history_buffer import HistoryBuffer

    methods = ('min', 'max', 'mean', 'current')

    def history_method(owner: Any, name: str) -> Any:
        if owner is not HistoryBuffer or name not in methods:
            raise ValueError(f'a checkpoint may not look up {name!r} of {owner!r}')
        return getattr(owner, name)

    core = numpy._core if hasattr(numpy, '_core') else numpy.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    # Of the log, and of what data sets say of themselves: palettes, and names of classes.
    dtypes = [type(numpy.dtype(t)) for t in (*numpy.typecodes['AllInteger'], *'?efdU')]
    torch.serialization.add_safe_globals(
        [HistoryBuffer, numpy.ndarray, numpy.dtype, *dtypes]
        + [(history_method, name) for name in ('builtins.getattr', '__builtin__.getattr')]
        + [
            (function, f'numpy.{module}.multiarray.{name}')
            for module in ('core', '_core')
            for name, function in (('_reconstruct', reconstruct), ('scalar', scalar))
        ]
    )
    _refuse_code()


def _refuse_code() -> None:
    """Keep MMEngine from running code that is in a checkpoint.

    Cause: onedl-mmengine 0.10.12 loads what is refused as weights once more, with
    ``weights_only=False``. MMEngine itself does not. Can go when the fork leaves that to its user.
    """
    plain = getattr(checkpoint, '_safe_torch_load', None)
    if plain is not None and not isinstance(plain, functools.partial):
        checkpoint._safe_torch_load = functools.partial(plain, weights_only=True)


def repair_last_checkpoint(work_dir: str | Path) -> None:
    """Let a run go on that was killed while MMEngine noted its latest checkpoint.

    Cause: CheckpointHook empties ``last_checkpoint`` before it writes the name, and a resume reads
    the empty name. The checkpoint itself is complete by then: the newest one that is takes its
    place. Can go when MMEngine writes the name in one step.
    """
    note = Path(work_dir) / 'last_checkpoint'
    if not note.is_file():
        return
    name = note.read_text().strip()
    if name and ('://' in name or Path(name).exists()):
        return
    # Checkpoints are zip files, whose directory comes last: a truncated one is none.
    whole = [path for path in Path(work_dir).glob('[!.]*.pth') if zipfile.is_zipfile(path)]
    if not whole:
        note.unlink()
        if name:
            MMLogger.get_current_instance().warning(
                f'{note} names {name}, which does not exist, and there is no other checkpoint in '
                f'{work_dir}: training starts anew'
            )
        return
    newest = max(whole, key=lambda path: path.stat().st_mtime_ns)
    write_bytes(note, str(newest).encode())


def allow_mmcv_without_ops() -> None:
    """Let MMSegmentation be imported beside ``mmcv-lite``.

    Cause: four of MMSegmentation's modules import ``mmcv.ops`` whether they are used or not, and
    that needs a compiled extension, which the lite build lacks. A stand-in takes its place, whose
    functions say what is missing when they are called. Can go when MMSegmentation imports its ops
    where it uses them.
    """
    import mmcv

    name = 'mmcv._ext'
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = mmcv._ext = _MissingOps(name)


class _MissingOps(ModuleType):
    """Has every function, and none that works."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # Without a loader: mmcv goes on to say that it has no operations.
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f'{name} is an operation of the full mmcv; mmcv-lite is installed. Install '
                'mmcv in its place to use this model'
            )

        return missing
