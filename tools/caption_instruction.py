#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Print an instruction for a language model that turns captions of your data into descriptions.

The idea of ALIA (arXiv 2305.16289): captions of images from where the model will be used go in, a
few descriptions of settings come out, none of which names a class. Paste what is printed into any
language model and save its answer, one description a line: the file is what ``texts`` of a
benchmark method and ``descriptions`` of TextGuidance take. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

INSTRUCTION = """\
Below are {count} captions of photos. Sum up the settings that they show (place, light, weather,
camera) in {num} short descriptions that differ from one another as much as the captions allow.

- One description a line, in the style of a caption, nothing else: no numbers, no quotes.
- Every line says "{subject}" for what is in the foreground. Never name {classes}.
- At most {words} words a line. Only what can be seen. Nothing that the captions do not show.

Captions:
{captions}"""


def instruction(
    captions: list[str], classes: list[str], subject: str, num: int, words: int = 15
) -> str:
    """The instruction as text.

    Raises:
        ValueError: If there are no captions or ``num`` is not positive.
    """
    if not captions or num < 1:
        raise ValueError(f'captions and num must be positive, got {len(captions)} and {num}')
    names = ' or '.join([', '.join(classes[:-1]), classes[-1]] if classes[1:] else classes)
    listed = '\n'.join(f'- {caption}' for caption in captions)
    return INSTRUCTION.format(
        count=len(captions),
        num=num,
        subject=subject,
        classes=names or 'any class',
        words=words,
        captions=listed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('captions', type=Path, help='text file, a caption a line')
    parser.add_argument('--classes', nargs='*', default=[], help='names that must not appear')
    parser.add_argument('--subject', required=True, help='what to say instead: "a bird"')
    parser.add_argument('--num', type=int, default=8, help='number of descriptions')
    args = parser.parse_args()
    if not args.captions.is_file():
        raise SystemExit(f'{args.captions} does not exist')
    lines = [line.strip() for line in args.captions.read_text().splitlines()]
    try:
        print(instruction([line for line in lines if line], args.classes, args.subject, args.num))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
