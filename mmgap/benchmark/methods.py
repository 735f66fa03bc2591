# SPDX-License-Identifier: Apache-2.0
"""What a method of a benchmark is: a checked fragment of the config, its keys explained here."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmgap.feedback import read_sentences
from mmgap.files import fingerprint

# What a cell sets itself; a method that changed it would not be compared on equal terms.
FIXED = (
    'custom_hooks',
    'load_from',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'resume',
    'train_cfg',
    'train_dataloader.sampler',
)
# What of a generator may change where the prompts of a search are to stay.
SAME_PROMPTS = {'scheduler', 'eta', 'compile', 'device'}
# Files whose content decides results, not their name.
CONTENTS = ('.txt', '.safetensors', '.pth', '.pt', '.bin')


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of making training images, or of training without new ones.

    A fragment says what the method changes in the config. A key that it does not have is None here
    and changes nothing. An empty dict is not the same: ``search=dict()`` searches as the hook does,
    and ``initial=dict()`` draws the hook's starting points.

    Attributes:
        name: Its name in ``benchmark.methods``.
        fragment: The fragment as the config has it.
        about: One line on what it is, for the tables.
        search: Changes to the hook's ``search``. Prompts are searched for.
        feedback: Terms instead of the hook's ``feedback``.
        prompts_of: The method whose prompts are taken; the fragment has its name.
        initial: Changes to the hook's ``search``. Its starting points are drawn without a search.
        texts: Sentences to draw, in a list or in a file. Beside prompts that are found they fill up
            the number.
        synthesis: Changes to the hook's ``synthesis``.
        cost_of: The method whose network evaluations it gets, at each budget; the fragment has its
            name, and ``texts``. With ``keep`` in ``synthesis`` it draws so many more images for
            each one that it keeps; else all are trained on, more than the budget.
        rounds: Number of rounds that the search is spread over. Each is against the model that has
            been trained with the images of the rounds before.
        generator: Changes to the hook's ``generator``.
        critic: A critic instead of the hook's ``critic``.
        dataset: Real images instead of generated ones. Without a ``type``, changes to the test
            data.
        train: Changes to the training config, for methods that make no images.
    """

    name: str
    fragment: Mapping[str, Any]
    about: str = ''
    search: Mapping[str, Any] | None = None
    feedback: Sequence[Mapping[str, Any]] | None = None
    prompts_of: Method | None = None
    initial: Mapping[str, Any] | None = None
    texts: str | Sequence[str] | None = None
    synthesis: Mapping[str, Any] | None = None
    cost_of: Method | None = None
    rounds: int = 1
    generator: Mapping[str, Any] | None = None
    critic: Mapping[str, Any] | bool | None = None
    dataset: Mapping[str, Any] | None = None
    train: Mapping[str, Any] | None = None

    @classmethod
    def from_fragment(
        cls,
        name: str,
        fragment: Mapping[str, Any],
        finders: Mapping[str, Method],
        others: Mapping[str, Method] | None = None,
    ) -> Method:
        """Check a fragment.

        Args:
            name: Name of the method.
            fragment: What it changes, by the names of the attributes.
            finders: Methods whose prompts may be taken.
            others: Methods whose cost may be taken.

        Raises:
            ValueError: If the fragment has unknown keys, or values that do not fit each other.
        """
        unknown = sorted(set(fragment) - set(KEYS))
        if unknown:
            raise ValueError(f'method {name!r} has unknown keys {unknown}; there are {KEYS}')
        check_train(fragment.get('train') or {}, f'method {name!r}')
        cls._check_useful(name, fragment, finders)
        rounds = fragment.get('rounds', 1)
        if rounds < 1 or (rounds > 1 and 'search' not in fragment):
            raise ValueError(
                f'method {name!r} has rounds={rounds}; there must be one at least, and several '
                'need a search of its own'
            )
        settings = dict(fragment)
        parent = settings.pop('prompts_of', None)
        if parent is not None and parent not in finders:
            raise ValueError(f'method {name!r} takes the prompts of {parent!r}, which finds none')
        prompts_of = None if parent is None else finders[parent]
        paid = settings.pop('cost_of', None)
        drawing = [key for key, method in (others or {}).items() if method.draws]
        if paid is not None and paid not in drawing:
            raise ValueError(
                f'method {name!r} has cost_of={paid!r}; there are {drawing}, which draw images and '
                'have no cost_of themselves'
            )
        plain = fragment.get('texts') or 'initial' in fragment
        alone = plain and not {'search', 'prompts_of'} & set(fragment)
        if paid is not None and not (alone and 'overdraw' not in fragment.get('synthesis', {})):
            raise ValueError(
                f'method {name!r} has cost_of={paid!r}, which goes with texts or '
                'initial, without a search, and sets overdraw itself'
            )
        cost_of = None if paid is None else (others or {})[paid]
        return cls(name=name, fragment=fragment, prompts_of=prompts_of, cost_of=cost_of, **settings)

    @staticmethod
    def _check_useful(
        name: str, fragment: Mapping[str, Any], finders: Mapping[str, Method]
    ) -> None:
        """See that no key of a fragment is without use beside the others."""
        given = {key for key, value in fragment.items() if value is not None} - {'about'}
        given -= {'rounds'} if fragment.get('rounds') == 1 else set()
        if 'prompts_of' in given:
            beside, useless = 'prompts_of', {'search', 'initial', 'texts', 'feedback', 'rounds'}
            finder = finders.get(fragment['prompts_of'])
            drawn = sorted(set(fragment.get('generator') or {}) - SAME_PROMPTS)
            if drawn and finder is not None and finder.search is not None:
                raise ValueError(
                    f'method {name!r} has prompts_of and changes {drawn} of the generator, for '
                    f'which prompts are found anew; only {sorted(SAME_PROMPTS)} may change'
                )
        elif 'search' in given:
            beside, useless = 'search', {'initial'}
        else:
            beside, useless = 'no search', {'feedback'}
        found = sorted(useless & given)
        if found:
            raise ValueError(f'method {name!r} has {found}, which has no use with {beside}')

    @property
    def makes_images(self) -> bool:
        """Whether budgets mean anything to it."""
        ways = (self.search, self.prompts_of, self.initial, self.texts, self.dataset)
        return any(way is not None for way in ways)

    @property
    def draws(self) -> bool:
        """Whether its images are drawn by the generator."""
        return self.makes_images and self.dataset is None

    @property
    def selects(self) -> bool:
        """Whether it keeps some of the images that it draws."""
        return 'keep' in (self.synthesis or {})

    @property
    def in_rounds(self) -> bool:
        """Whether its images, or those whose cost it gets, are drawn in several rounds."""
        return self.rounds > 1 or (self.cost_of is not None and self.cost_of.rounds > 1)

    @property
    def finder(self) -> Method:
        """The method that finds its prompts: the one of ``prompts_of``, or itself."""
        return self.prompts_of or self

    def choose_critic(self, default: Mapping[str, Any] | bool | None) -> Any:
        """Settings of its critic; ``default`` are the hook's."""
        return self.critic if 'critic' in self.fragment else default

    def sentences(self) -> list[str]:
        """The sentences of ``texts``.

        Raises:
            FileNotFoundError: If they are in a file that does not exist.
        """
        return read_sentences(self.texts) if isinstance(self.texts, str) else [*(self.texts or ())]

    def image_folders(self) -> list[str]:
        """Names of the folders, or addresses, that its feedback reads images from."""
        images = [term.get('images') for term in self.feedback or ()]
        return [folder for folder in images if isinstance(folder, str)]

    def key(self, shared: str) -> str:
        """Name what decides its results: they stay valid as long as the key is the same.

        Args:
            shared: Names what all methods have in common.
        """
        fragment = dict(self.fragment)
        fragment.pop('about', None)
        if 'texts' in fragment:
            fragment['texts'] = self.sentences()
        parts = [shared, fragment, self.prompts_of and self.prompts_of.key(shared)]
        parts += [self.cost_of.key(shared)] if self.cost_of else []
        return fingerprint(parts + contents_of(fragment))


def contents_of(settings: Any) -> list[list[Any]]:
    """What is in the files that settings name: sentences, prompts, weights, pictures to guide by.

    Args:
        settings: Plain data.

    Returns:
        Name and digest of each file, of each folder of ``images`` the names and sizes in it; empty
        where none is named.
    """
    found: list[list[Any]] = []
    parts = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
    for key, value in parts:
        if isinstance(value, (Mapping, list, tuple)):
            found += contents_of(value)
        elif isinstance(value, str) and value.endswith(CONTENTS) and Path(value).is_file():
            with open(value, 'rb') as file:
                found.append([value, hashlib.file_digest(file, 'sha256').hexdigest()[:16]])
        elif key == 'images' and isinstance(value, str) and Path(value).is_dir():
            files = sorted(path for path in Path(value).rglob('*') if path.is_file())
            sizes = [[str(path.relative_to(value)), path.stat().st_size] for path in files]
            found.append([value, fingerprint(sizes)])
    return found


def check_train(changes: Mapping[str, Any], name: str) -> None:
    """See that changes to the training leave alone what a cell sets itself.

    Args:
        changes: As the config has them, dicts or keys with dots.
        name: Whose they are, for messages.

    Raises:
        ValueError: If they do not.
    """
    fixed = [
        path
        for path in _paths(changes)
        if any(path == part or path.startswith(f'{part}.') for part in FIXED)
    ]
    if fixed:
        raise ValueError(f'{name} must not change {fixed}: all are trained alike')


def _paths(settings: Mapping[str, Any]) -> list[str]:
    """All keys of a fragment with those above them, by dots."""
    found = []
    for key, value in settings.items():
        inner = _paths(value) if isinstance(value, Mapping) else []
        found += [key, *(f'{key}.{path}' for path in inner)]
    return found


# Methods of the shipped configs whose names have changed, for one release.
RENAMED = {'guided': 'gp', 'guided-aim': 'gp-aim'}


def current_names(names: Sequence[str], methods: Collection[str]) -> list[str]:
    """Names of methods as they are now, with a warning for each old one."""
    current = []
    for name in names:
        new = RENAMED.get(name)
        if name not in methods and new in methods:
            warnings.warn(
                f'the method {name!r} is called {new!r} now; its old name goes with the next '
                'release, and results under it stay as they are',
                FutureWarning,
                stacklevel=2,
            )
            name = str(new)
        current.append(name)
    return current


KEYS = tuple(field.name for field in fields(Method) if field.name not in ('name', 'fragment'))


def read_methods(fragments: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    """Check all fragments of ``benchmark.methods``.

    Returns:
        Methods by name, in the order of the config.

    Raises:
        ValueError: As for :meth:`Method.from_fragment`.
    """
    finders = {
        name: Method.from_fragment(name, fragment, {})
        for name, fragment in fragments.items()
        if fragment.get('prompts_of') is None
        and fragment.get('cost_of') is None
        and {'search', 'initial'} & set(fragment)
    }
    free = {
        name: finders.get(name) or Method.from_fragment(name, fragment, finders)
        for name, fragment in fragments.items()
        if fragment.get('cost_of') is None
    }
    return {
        name: free.get(name) or Method.from_fragment(name, fragment, finders, free)
        for name, fragment in fragments.items()
    }
