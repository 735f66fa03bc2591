# SPDX-License-Identifier: Apache-2.0
"""What a machine is, and how much of its memory is taken: of the GPU, or else its own."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from pathlib import Path

import torch

RESET = Path('/proc/self/clear_refs')  # Linux
CPUS = Path('/proc/cpuinfo')


def device_name() -> str:
    """The GPU, or the processor and the number of threads that PyTorch uses of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = CPUS.read_text().splitlines() if CPUS.exists() else []
    named = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    threads = torch.get_num_threads()
    return f'{next(named, platform.processor())}, {threads} thread{"s" * (threads > 1)}'


def memory() -> int:
    """Bytes that this process can have, with what it has already."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def training_memory() -> int:
    """Bytes of the GPU that this process took at its peak since :func:`release_memory`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def release_memory() -> None:
    """Give what is cached of the GPU's memory back, and begin to watch the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def reset_peak() -> None:
    """Forget how much memory was taken so far, as for loading the weights."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        gc.collect()
        if hasattr(ctypes.CDLL(None), 'malloc_trim'):  # or what was freed would hide what is taken
            ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text('5')


def peak() -> int:
    """Most bytes taken since :func:`reset_peak`; 0 on systems without /proc, on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if not RESET.exists():
        return 0
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))
