# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: pages from outside of docs/, and links that are right on the code host too."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository's root, and the pages that they are here.
SHOWN = {'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md'}
PAGES = {**SHOWN, 'README.md': 'index.md'}
LINK = re.compile(r'(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root that are pages here."""
    for name, page in SHOWN.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    uri = page.file.src_uri
    at_root = {shown: name for name, shown in SHOWN.items()}
    here = at_root.get(uri, f'docs/{uri}')  # the page in the repository

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match['path']))
        if target.startswith('docs/'):
            shown = target.removeprefix('docs/')
        elif target in PAGES:
            shown = PAGES[target]
        else:
            return match[0]  # mkdocs says that it leads nowhere
        if (ROOT / target).is_dir():
            shown += '/README.md'
        return posixpath.relpath(shown, posixpath.dirname(uri) or '.') + (match['anchor'] or '')

    return LINK.sub(link, markdown)
