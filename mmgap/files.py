# SPDX-License-Identifier: Apache-2.0
"""Small helpers for what mmgap writes: whole files or none, and fingerprints of settings."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_bytes(path: str | Path, data: bytes, sync: bool = True) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one.

    What a killed writer leaves (``.NAME.tmp``) is taken over by the next one of the same file, so
    two processes must not write one file at the same time.

    Args:
        path: The file to write. Its folder is made when missing.
        data: The content.
        sync: Whether to wait until it is on the disk, so that it also outlives a power failure.

    Raises:
        OSError: When the disk is full or the folder cannot be written; no partial file stays.
    """
    path = Path(path)
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # The system does not name it when the disk is full.
        error.filename = str(path)
        del error.filename2  # where it should have been moved to
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if new and not path.exists():
            with suppress(OSError):  # others write there too
                path.parent.rmdir()


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: Any path that ``mmengine.fileio`` can read.

    Raises:
        ValueError: If it is in another encoding.
    """
    from mmengine.fileio import get

    try:
        return get(str(path)).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8'
        ) from error


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON; names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(
            f'{path} is not JSON: {error}; bring it back, or delete it to have it made again'
        ) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. See :func:`write_bytes`.

    Raises:
        ValueError: If ``value`` contains NaN or Inf, which JSON does not know.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + '\n').encode())


def write_image(path: str | Path, image: Any, **settings: Any) -> None:
    """Write a PIL image, whole or not at all. See :func:`write_bytes`.

    It does not wait for the disk: images come by the thousand, and can be made again.

    Args:
        path: The file; ``.png`` or ``.jpg`` says the format.
        image: The image.
        **settings: For ``PIL.Image.Image.save``.
    """
    buffer = io.BytesIO()
    image.save(buffer, format='PNG' if Path(path).suffix == '.png' else 'JPEG', **settings)
    write_bytes(path, buffer.getvalue(), sync=False)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: configs may hold classes and tuples, files may not.

    A class becomes its name, so that a config says the same in either style.
    """
    return json.loads(json.dumps(value, default=lambda v: getattr(v, '__name__', str(v))))


def finite(value: Any) -> Any:
    """Plain data with words in place of NaN and Inf, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that name a JSON-serialisable ``value`` (key order does not matter)."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_fingerprint(module: Any) -> str:
    """Sixteen hex digits that name the weights and buffers of a ``torch.nn.Module``.

    Every tensor enters with its name, shape, and up to 4096 evenly spaced values plus the sum of
    all bits, so that a billion parameters take a second and any training step changes the result.
    A sum of floats would depend on the number of threads, and on the GPU.
    """
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        digest.update(f'{name}{tuple(tensor.shape)}'.encode())
        stride = max(1, flat.numel() // 4096)
        digest.update(flat[::stride].cpu().double().numpy().tobytes())
        bits = flat.view(integers[flat.element_size()]) if flat.is_floating_point() else flat
        digest.update(str(int(bits.sum(dtype=torch.int64))).encode())
    return digest.hexdigest()[:16]
