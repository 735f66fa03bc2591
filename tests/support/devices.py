# SPDX-License-Identifier: Apache-2.0
"""Where tests run."""

from __future__ import annotations

import pytest


def see_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine and mmgap take the CPU, here and in processes started from here."""
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
