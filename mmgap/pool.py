# SPDX-License-Identifier: Apache-2.0
"""The sample pool: generated images on disk, one manifest line for each complete one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgap.files import plain, read_json, write_bytes, write_json
from mmgap.locks import locked
from mmgap.manifest import ManifestReader, Sample

GENERATORS = 'generators.json'
REAL = 'real'  # prompt and generator of an image that was not generated


class SamplePool:
    """An append-only folder of images with ``manifest.jsonl``.

    A line is written exactly when its image is complete on disk.

    Args:
        folder: The pool; made at the first :meth:`append`.

    Raises:
        ValueError: If a line of the manifest is not one that mmgap writes, or names an image that
            is missing, truncated, outside of the folder, or another line's.
        NotADirectoryError: If the folder is something else, or a link to nothing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.samples: list[Sample] = []
        self._reader = ManifestReader(folder)
        self.refresh()

    def refresh(self) -> None:
        """Read what has been written since; all, if it is not what it was.

        Raises:
            ValueError: As for the class.
        """
        samples, follow = self._reader.read()
        self.samples = self.samples + samples if follow else samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def kept(self) -> list[Sample]:
        """The samples to train on, in their order."""
        return [sample for sample in self.samples if sample.kept]

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self._reader.path

    def path(self, sample: Sample) -> Path:
        """Where the image of ``sample`` is."""
        return self.folder / sample.file

    def depth_path(self, sample: Sample) -> Path | None:
        """Where the depth map of ``sample`` is; None where it has none."""
        return None if sample.depth_file is None else self.folder / sample.depth_file

    @property
    def generators(self) -> dict[str, dict[str, Any]]:
        """What has drawn images of the pool: settings of generators by their fingerprint."""
        path = self.folder / GENERATORS
        return read_json(path) if path.exists() else {}

    def add_generator(self, name: str, settings: Mapping[str, Any]) -> None:
        """Write down what draws, so that ``generator`` of a sample can be looked up.

        Args:
            name: The generator's fingerprint.
            settings: Its settings, plain data.
        """
        known = self.generators
        if name not in known:
            write_json(self.folder / GENERATORS, plain({**known, name: dict(settings)}))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing; what they have written since is read.

        Raises:
            BlockingIOError: If another process writes to the pool.
        """
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder):
                self.refresh()
                yield
        finally:
            if new:
                with suppress(OSError):  # it is not empty
                    self.folder.rmdir()

    def append(
        self, image: np.ndarray | bytes, depth: np.ndarray | None = None, **fields: Any
    ) -> Sample:
        """Add one image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, kept as PNG; or what :func:`encode_png` makes of it.
            depth: ``(H, W)`` uint16 in ``depth_unit``, if the label is a depth map.
            **fields: Those of :class:`~mmgap.manifest.Sample` but the files and their sizes.

        Raises:
            OSError: When the disk is full; neither the image nor a line stays.
        """
        # Not the number of samples: a user may have taken lines out.
        number = 1 + int(Path(self.samples[-1].file).stem) if self.samples else 0
        name = f'{number:06d}.png'
        files: dict[str, bytes] = {}
        for kind, pixels in (('file', image), ('depth_file', depth)):
            if pixels is not None:
                fields[kind] = f'{"images" if kind == "file" else "depth"}/{name}'
                files[fields[kind]] = pixels if isinstance(pixels, bytes) else encode_png(pixels)
                fields[kind.replace('file', 'bytes')] = len(files[fields[kind]])
        sample = Sample(**fields)
        line = sample.line().encode()
        torn = self._reader.torn
        size = self.manifest.stat().st_size - torn if self.manifest.exists() else 0
        try:
            for name, data in files.items():
                write_bytes(self.folder / name, data)
            if torn:
                os.truncate(self.manifest, size)
            with open(self.manifest, 'ab') as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.manifest)
            if size:
                os.truncate(self.manifest, size)
            else:
                self.manifest.unlink(missing_ok=True)
            self._reader.torn = 0
            self._unlink(sample)
            raise
        self._reader.note(line, sample)
        self.samples.append(sample)
        return sample

    def append_real(
        self,
        image: np.ndarray | bytes,
        depth: np.ndarray | None = None,
        *,
        label: int,
        group: int | None,
        source_index: int,
        depth_unit: float | None = None,
    ) -> Sample:
        """Add a real image, for comparisons with generated ones.

        Its line has :data:`REAL` in place of prompt and generator, and no losses.

        Args:
            image: As for :meth:`append`.
            depth: As for :meth:`append`.
            label: Class.
            group: Its group; None when unknown.
            source_index: Its index in its dataset.
            depth_unit: Metres that a 1 in ``depth`` stands for.

        Raises:
            OSError: As for :meth:`append`.
        """
        return self.append(
            image,
            depth,
            label=label,
            group=group,
            source_index=source_index,
            source_group=group,
            seed=0,
            prompt_id=REAL,
            generator=REAL,
            num_inference_steps=0,
            target_loss_source=None,
            target_loss_image=None,
            feedback=None,
            round=0,
            depth_unit=depth_unit,
        )

    def keep(self, wanted: Callable[[int, Sample], bool]) -> int:
        """Keep the first samples for which ``wanted(number, sample)`` holds, drop the rest.

        Returns:
            How many were dropped.
        """
        kept = 0
        while kept < len(self.samples) and wanted(kept, self.samples[kept]):
            kept += 1
        dropped = self.samples[kept:]
        if dropped:
            lines = [sample.line().encode() for sample in self.samples[:kept]]
            write_bytes(self.manifest, b''.join(lines))
            self._reader.forget()
            for line, sample in zip(lines, self.samples, strict=False):
                self._reader.note(line, sample)
            for sample in dropped:
                self._unlink(sample)
            del self.samples[kept:]
            used = {sample.generator for sample in self.samples}
            known = {name: settings for name, settings in self.generators.items() if name in used}
            if known != self.generators:
                write_json(self.folder / GENERATORS, known)
        return len(dropped)

    def _unlink(self, sample: Sample) -> None:
        for path in (self.path(sample), self.depth_path(sample)):
            if path is not None:
                path.unlink(missing_ok=True)
                if not self.samples:
                    with suppress(OSError):  # it is not there, or not empty
                        path.parent.rmdir()


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of ``(H, W, 3)`` uint8 or ``(H, W)`` uint16 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format='PNG')
    return buffer.getvalue()
