# SPDX-License-Identifier: Apache-2.0
"""Prompts on disk: safetensors in the textual-inversion layout, JSON provenance beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mmgap.files import write_bytes, write_json
from mmgap.prompts.soft_prompt import SoftPrompt, ids_of

# Names under which a file for Stable Diffusion XL holds the parts for its two text encoders.
TWO_ENCODERS = ('clip_l', 'clip_g')


def load_prompt(
    path: str | Path,
    width: int | None = None,
    joiner: str = ' ',
    turn: int = 0,
    id: str | None = None,
    classes: Sequence[str] | None = None,
) -> SoftPrompt:
    """Read one prompt from a file.

    ``.safetensors`` files hold ``{placeholder: (n, width)}``, as diffusers writes and reads them;
    for Stable Diffusion XL ``{'clip_l': (n, width), 'clip_g': (n, width)}``, as is usual there.
    ``.bin`` and ``.pt`` files of other textual-inversion programs are read weights-only; several
    one-vector tokens in a file become one prompt, in the file's order.

    Args:
        path: The prompt file.
        width: Embedding width that the text encoder needs, checked when given.
        joiner: Text between the tokens of an imported file, see :class:`SoftPrompt`. What mmgap
            saved itself brings its own.
        turn: Its turn among the prompts, unless the file brings one.
        id: Its name, unless the file brings one; by default the file's.
        classes: Names of the data's classes, checked against that of the file when given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the provenance beside it cannot be read, holds code, no
            embeddings, or embeddings of another width, or it was found for another class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'prompt file {path} does not exist')
    try:
        if path.suffix == '.safetensors':
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; it never runs code
        raise ValueError(f'prompt file {path} cannot be read: {error}') from error
    embeddings, widths = _embeddings(state, path)
    if width is not None and embeddings.shape[1] != width:
        raise ValueError(
            f'prompt file {path} holds embeddings of width {embeddings.shape[1]}, the text encoder '
            f'needs {width}: the prompt was made for another model'
        )
    provenance = path.with_suffix('.json')
    try:
        known: dict[str, Any] = {}
        if provenance.is_file():
            known = dict(json.loads(provenance.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f'provenance {provenance} of a prompt is not JSON: {error}') from error
    prompt = SoftPrompt(
        embeddings,
        id=known.get('id', id or ids_of([path.stem])[0]),
        label=known.get('label'),
        template=known.get('template', '{}'),
        joiner=known.get('joiner', joiner),
        turn=known.get('turn', known.get('number', turn)),
        widths=widths,
    )
    name = known.get('class')
    if classes is not None and None not in (prompt.label, name):
        # Data without names have their numbers in place of them.
        if name not in (*classes[prompt.label :][:1], str(prompt.label)):
            raise ValueError(
                f'prompt file {path} was found for class {prompt.label}, {name!r}, and the data '
                f'have the classes {[*classes]}; give them the same classes in the same order'
            )
    return prompt


def _embeddings(state: Any, path: Path) -> tuple[Tensor, tuple[int, ...]]:
    """``(n, width)``, and the widths of its parts."""
    if isinstance(state, dict) and set(state) == set(TWO_ENCODERS):
        parts = [_one_part({name: state[name]}, path) for name in TWO_ENCODERS]
        if len(parts[0]) != len(parts[1]):
            raise ValueError(
                f'prompt file {path} must hold as many embeddings for either text encoder, got '
                f'{len(parts[0])} and {len(parts[1])}'
            )
        return torch.cat(parts, dim=1), tuple(part.shape[1] for part in parts)
    embeddings = _one_part(state, path)
    return embeddings, (embeddings.shape[1],)


def _one_part(state: Any, path: Path) -> Tensor:
    if isinstance(state, dict) and 'string_to_param' in state:
        state = state['string_to_param']
    rows = []
    for value in state.values() if isinstance(state, dict) else [state]:
        if not isinstance(value, Tensor) or value.ndim not in (1, 2):
            raise ValueError(f'prompt file {path} holds something else than token embeddings')
        rows.append(value.detach().float().reshape(-1, value.shape[-1]))
    if not rows or len({row.shape[1] for row in rows}) != 1:
        raise ValueError(f'prompt file {path} must hold embeddings of one width, got {len(rows)}')
    return torch.cat(rows)


class PromptBank:
    """A folder of prompts.

    Args:
        folder: Where the files are; made at the first :meth:`add`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add(self, prompt: SoftPrompt, provenance: dict[str, Any]) -> Path:
        """Save ``prompt`` and where it came from; replaces a prompt of the same id.

        Args:
            prompt: The prompt.
            provenance: JSON-serialisable facts: seed, steps, losses, the generator's fingerprint.

        Returns:
            The safetensors file.
        """
        path = self.folder / f'{prompt.id}.safetensors'
        content = dict(
            provenance,
            id=prompt.id,
            label=prompt.label,
            template=prompt.template,
            joiner=prompt.joiner,
            turn=prompt.turn,
            tokens=len(prompt.embeddings),
        )
        write_json(path.with_suffix('.json'), content)
        parts = prompt.embeddings.detach().cpu().float().split(prompt.widths, dim=1)
        names = (prompt.placeholder,) if len(parts) == 1 else TWO_ENCODERS
        tensors = zip(names, (part.contiguous() for part in parts), strict=True)
        write_bytes(path, save(dict(tensors)))
        return path

    def __iter__(self) -> Iterator[SoftPrompt]:
        return (load_prompt(path) for path in self.paths())

    def __len__(self) -> int:
        return len(self.paths())

    def paths(self) -> list[Path]:
        """The prompt files, sorted by name."""
        return sorted(self.folder.glob('*.safetensors'))


def load_prompts(
    path: str | Path,
    width: int | None = None,
    joiner: str = ' ',
    classes: Sequence[str] | None = None,
) -> list[SoftPrompt]:
    """Prompts of a file or of a folder of files. Arguments as in :func:`load_prompt`.

    Raises:
        FileNotFoundError: If there is no such file, or no prompt in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        return [load_prompt(path, width, joiner, classes=classes)]
    files = sorted(p for p in path.iterdir() if p.suffix in ('.safetensors', '.bin', '.pt'))
    if not files:
        raise FileNotFoundError(f'{path} holds no prompt files (*.safetensors, *.bin, *.pt)')
    ids = ids_of([file.stem for file in files])
    return [
        load_prompt(file, width, joiner, place, ids[place], classes)
        for place, file in enumerate(files)
    ]
