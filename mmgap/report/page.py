# SPDX-License-Identifier: Apache-2.0
"""The page of a run, put together from its sections."""

from __future__ import annotations

import re
from pathlib import Path

from mmgap.files import write_bytes
from mmgap.report import rounds, sections
from mmgap.report.facts import Run, read_run
from mmgap.report.markup import text

LIMIT = 5_000_000  # bytes of a page
# From the finest to the coarsest: pixels of an image, and whether all steps of a prompt are shown.
PICTURES = ((192, True), (128, True), (96, True), (64, True), (64, False))
# No request leaves the page, whatever the names in it say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(work_dir: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        work_dir: The run's work directory.
        path: Where; ``gap/report.html`` in the work directory by default.

    Returns:
        Where it is.

    Raises:
        FileNotFoundError: If the work directory has nothing of a run yet.
        ValueError: If a file in it is damaged.
    """
    run = read_run(work_dir)
    path = run.folder / 'report.html' if path is None else Path(path)
    write_bytes(path, render_page(run).encode(), sync=False)  # it can be made again
    return path


def render_page(run: Run) -> str:
    """The page of a run as HTML that needs nothing else: no script, no font, no file.

    Its images are made small enough that it stays below five megabytes, if that can be done.

    Raises:
        ValueError: If an image of the run is damaged.
    """
    page = ''
    for width, whole in PICTURES:
        page = _render(run, width, whole)
        if len(page) <= LIMIT:
            break
    return page


def _render(run: Run, width: int, whole: bool) -> str:
    parts = {
        'Result': sections.groups(run),
        **{
            f'Round {one.number}' if len(run.rounds) > 1 else 'Search and images': rounds.section(
                run, one, width, whole
            )
            for one in run.rounds
        },
        'Injection': sections.injection(run),
        'Cost': sections.cost(run),
        'Settings': sections.settings(run),
        'Versions': sections.versions(run),
    }
    shown = {title: body for title, body in parts.items() if body}
    links = ''.join(f'<a href="#{_anchor(title)}">{text(title)}</a>' for title in shown)
    bodies = ''.join(
        f'<section id="{_anchor(title)}"><h2>{text(title)}</h2>{body}</section>'
        for title, body in shown.items()
    )
    style = Path(__file__).with_name('style.css').read_text()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{text(run.name)} - mmgap</title>
<style>
{style}</style>
</head>
<body>
<main>
{sections.header(run)}
<nav>{links}</nav>
{bodies}
<footer>Made from the files of the run alone; <code>mmgap report WORK_DIR</code> makes it
again.</footer>
</main>
</body>
</html>
"""


def _anchor(title: str) -> str:
    return re.sub(r'\W+', '-', title.lower())
