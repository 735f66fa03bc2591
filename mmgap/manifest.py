# SPDX-License-Identifier: Apache-2.0
"""The manifest of a sample pool: one line for each complete image, read and checked."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmgap.typed import fits, hints_of

MANIFEST = 'manifest.jsonl'
PARTS = ('images', 'depth')  # folders of the pool
SOMETIMES = ('source_digest', 'label_name', 'usefulness', 'useful_by', 'evaluations')
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
    source_digest: str | None = None

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
        generator: Fingerprint of the generator, see
            :meth:`~mmgap.pool.SamplePool.add_generator`.
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
        source_digest: Of the source's files, see :func:`~mmgap.sources.condition.digest_of`; None
            where they are not known.
        label_name: Name of the class; None in pools of older versions, and of depth.
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
    source_digest: str | None = None
    label_name: str | None = None
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


class ManifestReader:
    """Reads the manifest of a pool, and what has been added since it was read.

    Each image that a line names must be on disk, and of the size that the line says; only those of
    new lines are looked at.

    Args:
        folder: The pool.

    Attributes:
        size: Bytes of the lines that were read.
        torn: Bytes after them, of a line that is not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / MANIFEST
        self.forget()

    def forget(self) -> None:
        """Begin again with the first line."""
        self.size = self.torn = 0
        self._sum = zlib.crc32(b'')
        self._lines: dict[str, int] = {}  # of each image

    @property
    def checksum(self) -> str:
        """Eight hex digits of the lines that were read."""
        return f'{self._sum:08x}'

    def note(self, line: bytes, sample: Sample) -> None:
        """The next line is known: this process has written it."""
        self.size += len(line)
        self.torn = 0
        self._sum = zlib.crc32(line, self._sum)
        self._lines[sample.file] = 1 + len(self._lines)

    def read(self) -> tuple[list[Sample], bool]:
        """Samples that have not been read; and whether they follow those that have.

        Where lines that were read have changed, all are read again.

        Raises:
            ValueError: If a line is not one that mmgap writes, or names an image that is missing,
                truncated, outside of the folder, or another line's. None of them counts as read.
            NotADirectoryError: If the folder is something else, or a link to nothing.
        """
        self._check_folder()
        text = self.path.read_bytes() if self.path.exists() else b''
        known = memoryview(text)[: self.size]
        follows = len(known) == self.size and zlib.crc32(known) == self._sum
        if not follows:
            self.forget()
        lines = dict(self._lines)
        complete, newline, torn = text[self.size :].rpartition(b'\n')
        samples = self._samples(complete.splitlines(), lines)
        self._check_images(samples, 1 + len(self._lines))
        self._sum = zlib.crc32(complete + newline, self._sum)
        self.size += len(complete + newline)
        self._lines = lines
        # Killed while the line was written: the image has no line yet. Only a writer cuts it off.
        self.torn = len(torn)
        return samples, follows

    def _samples(self, new: Sequence[bytes], lines: dict[str, int]) -> list[Sample]:
        """The samples of new lines, whose images are added to ``lines``."""
        samples: list[Sample] = []
        shapes: set[tuple[Any, ...]] = set()  # fields and their types that have been looked at
        for number, fields in enumerate(self._parsed(new, 1 + len(lines)), start=1 + len(lines)):
            shape = (*fields, *map(type, fields.values())) if isinstance(fields, dict) else ()
            if shape not in shapes:
                self._check_fields(number, fields)
                shapes.add(shape)
            self._check_names(number, fields)
            other = lines.setdefault(fields['file'], number)
            if other != number:
                raise ValueError(
                    f'{self.path} line {number} names {fields["file"]}, as line {other} does; '
                    'delete one of them'
                )
            sample = object.__new__(Sample)  # a frozen dataclass takes five times as long
            sample.__dict__.update(OPTIONAL, **fields)
            samples.append(sample)
        return samples

    def _parsed(self, lines: Sequence[bytes], first: int) -> list[Any]:
        try:  # at once: one by one takes twice as long
            values = json.loads(b'[%s]' % b','.join(lines))
        except ValueError:
            values = None
        if values is not None and len(values) == len(lines):
            return values
        values = []
        for number, line in enumerate(lines, start=first):
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f'{self.path} line {number} is not JSON: {error}') from error
        return values

    def _check_folder(self) -> None:
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            what = 'a file' if self.folder.exists() else f'a link to {os.readlink(self.folder)}'
            missing = '' if self.folder.exists() else ', which does not exist'
            raise NotADirectoryError(
                f'pool {self.folder} must be a folder, it is {what}{missing}; give another path'
            )

    def _check_fields(self, number: int, fields: Any) -> None:
        names = {field.name for field in dataclasses.fields(Sample)}
        required = names - set(OPTIONAL)
        if not isinstance(fields, dict) or not required <= set(fields) <= names:
            raise ValueError(
                f'{self.path} line {number} must have the fields {sorted(required)} and '
                f'may have {sorted(names - required)}'
            )
        self._check_names(number, fields)
        for name, value in fields.items():
            if type(value) not in TYPES[name]:
                kinds = ' or '.join(sorted(WORDS[kind] for kind in TYPES[name]))
                raise ValueError(
                    f'{self.path} line {number}: {name} must be {kinds}, got {value!r}'
                )

    def _check_names(self, number: int, fields: Mapping[str, Any]) -> None:
        file, depth = fields['file'], fields.get('depth_file')
        if not IMAGE.fullmatch(str(file)):
            raise ValueError(
                f'{self.path} line {number}: file must be images/NUMBER.png, got {file!r}'
            )
        if depth is not None and depth != file.replace('images/', 'depth/'):
            raise ValueError(
                f'{self.path} line {number}: depth_file must be depth/NUMBER.png with the '
                f'number of its image, got {depth!r}'
            )

    def _check_images(self, samples: Sequence[Sample], first: int) -> None:
        prefix = os.path.join(self.folder, '')  # a Path takes ten times as long
        linked = tuple(f'{part}/' for part in PARTS if os.path.islink(prefix + part))
        for number, sample in enumerate(samples, start=first):
            for name, size in (
                (sample.file, sample.bytes),
                (sample.depth_file, sample.depth_bytes),
            ):
                if name is None:
                    continue
                found = _size_of(prefix + name)
                if found != size or name.startswith(linked):
                    self._check_image(number, name, size)

    def _check_image(self, number: int, name: str, size: int | None) -> None:
        """The same for an image that may be behind a link."""
        real = os.path.realpath(self.folder / name)
        inside = os.path.join(os.path.realpath(self.folder), '')
        if not real.startswith(inside):  # pools are passed on, and unpacked elsewhere
            raise ValueError(
                f'{self.path} line {number} names {name}, which is a link to {real}, outside the '
                'pool; put the file itself there'
            )
        found = _size_of(real)
        if found != size:
            what = 'is missing' if found is None else f'has {found} of {size} bytes'
            raise ValueError(
                f'{self.path} line {number} names {name}, which {what}; bring the file back, or '
                'delete this line and all after it to have them drawn again'
            )


def _size_of(path: str) -> int | None:
    """Bytes of a file; None for what is none, or a link."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
