# SPDX-License-Identifier: Apache-2.0
"""The sample pool: generated images on disk, one manifest line for each complete one."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgap.files import plain, read_json, write_bytes, write_json
from mmgap.locks import locked
from mmgap.typed import fits, hints_of

MANIFEST = 'manifest.jsonl'
GENERATORS = 'generators.json'
REAL = 'real'  # prompt and generator of an image that was not generated
SOMETIMES = ('usefulness', 'useful_by', 'evaluations')
IMAGE = re.compile(r'images/(\d{6,})\.png')


@dataclass(frozen=True)
class Recipe:
    """What decides an image: equal recipes are equal images.

    Attributes: as those of :class:`Sample`.
    """

    round: int
    source_index: int
    label: int
    seed: int
    prompt_id: str
    depth_unit: float | None
    generator: str
    num_inference_steps: int

    def same_plan(self, other: Recipe) -> bool:
        """Whether a round planned the same image, whatever it was drawn with."""
        drawn_alike = replace(
            self, generator=other.generator, num_inference_steps=other.num_inference_steps
        )
        return drawn_alike == other


@dataclass(frozen=True)
class Sample:
    """One line of the manifest.

    Attributes:
        file: Image file, relative to the pool's folder.
        bytes: Its size, by which a truncated file is found.
        label: Class.
        group: Group of the image, None when the generated part's group is not known.
        source_index: Index of the source in its dataset.
        source_group: Group of the source, None when unknown.
        seed: Seed of the generator.
        prompt_id: Prompt that it was drawn with.
        generator: Fingerprint of the generator, see :meth:`SamplePool.add_generator`.
        num_inference_steps: Denoising steps.
        target_loss_source: Target's loss on the source at the generator's size.
        target_loss_image: Target's loss on the image.
        feedback: Feedback loss of the image.
        round: Round that made it.
        agreement: How far a critic finds that the image agrees with its label; None without one.
        critic: Fingerprint of that critic.
        kept: Whether it is trained on; False where the critic dropped it, or others were more
            useful.
        usefulness: How useful the target finds it, where more images are drawn than are kept; see
            :class:`~mmgap.synthesis.selection.Keep`. None elsewhere.
        useful_by: By which measure, and a fingerprint of target and feedback.
        evaluations: Network evaluations that it cost, see
            :class:`~mmgap.generators.evaluations.Evaluations`; None where nobody counted.
        depth_file: Depth map, a 16-bit PNG relative to the pool's folder; None where labels are
            classes. 0 is unknown.
        depth_bytes: Its size.
        depth_unit: Metres that a 1 in it stands for.
    """

    file: str
    bytes: int
    label: int
    group: int | None
    source_index: int
    source_group: int | None
    seed: int
    prompt_id: str
    generator: str
    num_inference_steps: int
    target_loss_source: float | None
    target_loss_image: float | None
    feedback: float | None
    round: int
    agreement: float | None = None
    critic: str | None = None
    kept: bool = True
    usefulness: float | None = None
    useful_by: str | None = None
    evaluations: float | None = None
    depth_file: str | None = None
    depth_bytes: int | None = None
    depth_unit: float | None = None

    @property
    def recipe(self) -> Recipe:
        """What decides the image."""
        names = [field.name for field in dataclasses.fields(Recipe)]
        return Recipe(**{name: getattr(self, name) for name in names})

    def line(self) -> str:
        """The manifest's line; it names depth, usefulness and cost only where there are some."""
        fields = asdict(self)
        left_out = {name for name in SOMETIMES if fields[name] is None}
        if self.depth_file is None:
            left_out |= {name for name in fields if name[:6] == 'depth_'}
        return json.dumps({k: v for k, v in fields.items() if k not in left_out}) + '\n'


WORDS = {bool: 'true or false', int: 'a whole number', str: 'text', float: 'a number'}
WORDS[type(None)] = 'null'
OPTIONAL = {
    field.name: field.default
    for field in dataclasses.fields(Sample)
    if field.default is not MISSING
}
# What JSON may have in each field; whole numbers are numbers too.
TYPES = {
    name: {kind for kind, one in ((k, k()) for k in WORDS) if fits(one, hint)}
    for name, hint in hints_of(Sample).items()
}


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
        self._torn = 0
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            what = 'a file' if self.folder.exists() else f'a link to {os.readlink(self.folder)}'
            missing = '' if self.folder.exists() else ', which does not exist'
            raise NotADirectoryError(
                f'pool {self.folder} must be a folder, it is {what}{missing}; give another path'
            )
        self._seen = self._stamp()
        self.samples: list[Sample] = self._read()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def kept(self) -> list[Sample]:
        """The samples to train on, in their order."""
        return [sample for sample in self.samples if sample.kept]

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self.folder / MANIFEST

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
                if self._stamp() != self._seen:
                    self.samples = self._read()
                yield
        finally:
            self._seen = self._stamp()
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
            **fields: Those of :class:`Sample` but the files and their sizes.

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
        size = self.manifest.stat().st_size - self._torn if self.manifest.exists() else 0
        try:
            for name, data in files.items():
                write_bytes(self.folder / name, data)
            if self._torn:
                os.truncate(self.manifest, size)
                self._torn = 0
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
            self._torn = 0
            self._unlink(sample)
            raise
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
            lines = ''.join(sample.line() for sample in self.samples[:kept])
            write_bytes(self.manifest, lines.encode())
            self._torn = 0
            for sample in dropped:
                self._unlink(sample)
            del self.samples[kept:]
            used = {sample.generator for sample in self.samples}
            known = {name: settings for name, settings in self.generators.items() if name in used}
            if known != self.generators:
                write_json(self.folder / GENERATORS, known)
        return len(dropped)

    def _stamp(self) -> tuple[int, int] | None:
        """What tells that the manifest has changed."""
        try:
            found = self.manifest.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    def _read(self) -> list[Sample]:
        if not self.manifest.exists():
            return []
        text = self.manifest.read_bytes()
        complete, _, torn = text.rpartition(b'\n')
        # Killed while the line was written: the image has no line yet. Only a writer cuts it off.
        self._torn = len(torn)
        samples: list[Sample] = []
        lines: dict[str, int] = {}
        shapes: set[tuple[Any, ...]] = set()  # fields and their types that have been looked at
        for number, fields in enumerate(self._parsed(complete.splitlines()), start=1):
            shape = (*fields, *map(type, fields.values())) if isinstance(fields, dict) else ()
            if shape not in shapes:
                self._check_fields(number, fields)
                shapes.add(shape)
            self._check_names(number, fields)
            other = lines.setdefault(fields['file'], number)
            if other != number:
                raise ValueError(
                    f'{self.manifest} line {number} names {fields["file"]}, as line {other} does; '
                    'delete one of them'
                )
            sample = object.__new__(Sample)  # a frozen dataclass takes five times as long
            sample.__dict__.update(OPTIONAL, **fields)
            samples.append(sample)
        self._check_images(samples)
        return samples

    def _parsed(self, lines: Sequence[bytes]) -> list[Any]:
        try:  # at once: one by one takes twice as long
            values = json.loads(b'[%s]' % b','.join(lines))
        except ValueError:
            values = None
        if values is not None and len(values) == len(lines):
            return values
        values = []
        for number, line in enumerate(lines, start=1):
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f'{self.manifest} line {number} is not JSON: {error}') from error
        return values

    def _check_fields(self, number: int, fields: Any) -> None:
        names = {field.name for field in dataclasses.fields(Sample)}
        required = names - set(OPTIONAL)
        if not isinstance(fields, dict) or not required <= set(fields) <= names:
            raise ValueError(
                f'{self.manifest} line {number} must have the fields {sorted(required)} and '
                f'may have {sorted(names - required)}'
            )
        self._check_names(number, fields)
        for name, value in fields.items():
            if type(value) not in TYPES[name]:
                kinds = ' or '.join(sorted(WORDS[kind] for kind in TYPES[name]))
                raise ValueError(
                    f'{self.manifest} line {number}: {name} must be {kinds}, got {value!r}'
                )

    def _check_names(self, number: int, fields: Mapping[str, Any]) -> None:
        file, depth = fields['file'], fields.get('depth_file')
        if not IMAGE.fullmatch(str(file)):
            raise ValueError(
                f'{self.manifest} line {number}: file must be images/NUMBER.png, got {file!r}'
            )
        if depth is not None and depth != file.replace('images/', 'depth/'):
            raise ValueError(
                f'{self.manifest} line {number}: depth_file must be depth/NUMBER.png with the '
                f'number of its image, got {depth!r}'
            )

    def _check_images(self, samples: Sequence[Sample]) -> None:
        sizes = {**self._sizes('images'), **self._sizes('depth')}
        inside = os.path.join(os.path.realpath(self.folder), '')
        for number, sample in enumerate(samples, start=1):
            for name, size in (
                (sample.file, sample.bytes),
                (sample.depth_file, sample.depth_bytes),
            ):
                if name is None:
                    continue
                found = sizes.get(name)
                if found == size:
                    continue
                real = os.path.realpath(self.folder / name)
                if not real.startswith(inside):  # pools are passed on, and unpacked elsewhere
                    raise ValueError(
                        f'{self.manifest} line {number} names {name}, which is a link to {real}, '
                        'outside the pool; put the file itself there'
                    )
                if found is None and os.path.isfile(real):  # a link inside the pool
                    found = os.path.getsize(real)
                    if found == size:
                        continue
                what = 'is missing' if found is None else f'has {found} of {size} bytes'
                raise ValueError(
                    f'{self.manifest} line {number} names {name}, which {what}; bring the file '
                    'back, or delete this line and all after it to have them drawn again'
                )

    def _sizes(self, part: str) -> dict[str, int]:
        """Bytes of the files in a part of the pool, without what is a link, or behind one."""
        folder = self.folder / part
        if not folder.is_dir() or folder.is_symlink():
            return {}
        with os.scandir(folder) as entries:
            return {
                f'{part}/{entry.name}': entry.stat(follow_symlinks=False).st_size
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            }

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
