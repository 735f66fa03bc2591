# SPDX-License-Identifier: Apache-2.0
"""An accelerator on machines without one: ``torch.device('mock')``, its memory the host's.

It computes with the CPU's kernels, but its tensors are of another device, so what mixes devices
fails as it does on CUDA: operators with tensors of both, ``tensor.numpy()``, generators of the
wrong device, use in forked processes. It says nothing of speed, memory, or how CUDA rounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def load_mock_device() -> None:
    """Compile the device (20 s, kept in the temporary folder) and make PyTorch know it.

    Once per process; afterwards ``'mock'`` is a device like any other.

    Raises:
        RuntimeError: If there is no C++ compiler or no ninja.
    """
    if hasattr(torch, 'mock'):
        return
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_suffix('.cpp')
    # A build fits one source and one release of PyTorch.
    key = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f'mmgap_mock_device_{key}'
    folder.mkdir(exist_ok=True)
    native = load('mmgap_mock_device', [str(source)], ['-O1'], build_directory=str(folder))
    torch.utils.rename_privateuse1_backend('mock')
    torch._register_device_module('mock', _device_module(native))
    torch.utils.generate_methods_for_privateuse1_backend()


def _device_module(native: Any) -> types.ModuleType:
    """What ``torch.cuda`` is to CUDA, as far as PyTorch and OpenMMLab ask for it."""
    module = types.ModuleType('torch.mock')

    @contextlib.contextmanager
    def device(_: Any) -> Iterator[None]:
        yield

    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.is_bf16_supported = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda _: None
    module.synchronize = lambda _=None: None
    module.empty_cache = lambda: None
    module.device = device
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module._is_in_bad_fork = native.in_fork
    module.manual_seed_all = lambda seed: native.default_generator().manual_seed(seed)
    module.manual_seed = module.manual_seed_all
    module.get_rng_state = lambda _='mock': native.default_generator().get_state()
    module.set_rng_state = lambda state, _='mock': native.default_generator().set_state(state)
    return module
