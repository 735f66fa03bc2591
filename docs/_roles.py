# SPDX-License-Identifier: Apache-2.0
"""Extension of griffe: the few things of reStructuredText in docstrings become Markdown."""

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:attr|class|data|exc|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`')
BLOCK = re.compile(r'^( *)\.\. code-block:: \w+\n', re.MULTILINE)


class Roles(griffe.Extension):
    """``:class:`~mmgap.manifest.Sample` `` becomes a link where the site has it, else code."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of a package once it is loaded."""
        if pkg.name == 'mmgap':
            registered = dict(exported(pkg))
            for object_ in walk(pkg):
                if object_.docstring is not None:
                    object_.docstring.value = to_markdown(object_, registered)


def walk(object_: griffe.Object) -> list[griffe.Object]:
    """The object and all that is defined in it."""
    found = [object_]
    for member in object_.members.values():
        if not member.is_alias:
            found += walk(member)
    return found


def exported(package: griffe.Module) -> list[tuple[str, str]]:
    """Names that the packages export, and where they are defined.

    Configs write ``mmgap.NAME`` for what is registered, which is no path of Python's.
    """
    found = []
    for module in walk(package):
        for member in module.members.values() if module.is_module else ():
            if member.is_alias and member.target_path.startswith(f'{package.name}.'):
                found.append((member.name, member.target_path))
    return found


def to_markdown(object_: griffe.Object, registered: dict[str, str]) -> str:
    """The docstring of an object, as Markdown."""

    def link(match: re.Match[str]) -> str:
        name = match['name']
        last = name.rpartition('.')[2]
        shown = last if match['short'] else name
        try:
            path = object_.resolve(name)
        except griffe.NameResolutionError:
            path = name
        if name == f'mmgap.{last}' and last in registered:
            path = registered[last]
        # optional: what has no entry in the site is code, and no warning
        return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'

    text = ROLE.sub(link, object_.docstring.value)
    text = BLOCK.sub('', text)  # what follows it is indented, as code is in Markdown
    return re.sub(r'::$', ':', text, flags=re.MULTILINE)
