"""Reads captions from a text table: an image and a caption per line, delimited by `|`, commas or tabs.

Tolerates what real files contain: unquoted delimiters in captions, a line with one of its two bars missing (in the
public Flickr30k download), a missing header. Columns are found by name.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from captioning.data.annotation_record import Annotation, Collector
from captioning.data.problems import Problems
from captioning.errors import InputError

IMAGE_COLUMNS = ("image", "image_name", "filename", "file_name", "image_path", "path", "file")
CAPTION_COLUMNS = ("caption", "comment", "text", "caption_text", "sentence")
SPLIT_COLUMNS = ("split",)

#: A quoted caption may span up to this many lines; an opening quote that is not closed by then is a plain character.
_MAX_QUOTED_LINES = 20

_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*')
_OPENED = re.compile(r'\s*"(?:[^"]|"")*$')
_BAR_MISSING = re.compile(r"([^|]+)\|\s*(\d+)\s+(\S.*)")


@dataclass(frozen=True)
class _Columns:
    delimiter: str
    count: int
    image: int
    caption: int
    split: int | None
    header: bool

    @property
    def quoting(self) -> bool:
        """Whether quotes are syntax: in comma- and tab-separated files, but not between bars."""
        return self.delimiter != "|"


def read_table(data: bytes, problems: Problems, *, where: str) -> list[Annotation]:
    """The captions of a table, one record per image. Raises `InputError` if the columns cannot be recognised."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    texts = []
    for number, line in enumerate(lines, start=1):
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        if "\ufffd" in text and "\ufffd".encode() not in line:
            problems.add("lines that are not UTF-8, invalid bytes replaced", f"{where}:{number}")
        texts.append(text)
    columns = _find_columns(next(text for text in texts if text.strip()), where)
    collector = Collector(problems)
    started = not columns.header
    for number, text in _records(texts, columns):
        if not text.strip():
            continue
        if not started:
            started = True
            continue
        place = f"{where}:{number}"
        fields = _split(text, columns)
        if fields is None:
            problems.add("lines without an image or a caption, skipped", place)
            continue
        if fields[0] is None:
            problems.add("lines with a missing bar, repaired", place)
        image = (fields[columns.image + 1] or "").strip()
        if not image:
            problems.add("captions without an image name, skipped", place)
            continue
        split = None if columns.split is None else (fields[columns.split + 1] or "").strip() or None
        collector.add_image(image, split=split)
        # These files have one space after a bar or a comma.
        collector.add_caption(image, (fields[columns.caption + 1] or "").removeprefix(" "), place)
    return collector.annotations()


def _find_columns(first: str, where: str) -> _Columns:
    delimiter = max("|\t,", key=lambda mark: (mark in first, mark == "|"))
    names = [_unquote(field).strip().lower() for field in first.split(delimiter)]
    if delimiter in first and any(name in IMAGE_COLUMNS for name in names):
        image, caption = _position(names, IMAGE_COLUMNS), _position(names, CAPTION_COLUMNS)
        if image is not None and caption is not None:
            return _Columns(delimiter, len(names), image, caption, _position(names, SPLIT_COLUMNS), True)
    elif delimiter in first and re.search(r"\.\w{2,5}$", names[0]):
        numbered = len(names) > 2 and names[1].isdigit()
        return _Columns(delimiter, 3 if numbered else 2, 0, 2 if numbered else 1, None, False)
    raise InputError(
        f"{where} has no columns that name an image and a caption; its first line is {first[:120]!r}. Add a header "
        f"line such as image,caption. Image columns: {', '.join(IMAGE_COLUMNS)}; "
        f"caption columns: {', '.join(CAPTION_COLUMNS)}."
    )


def _position(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _records(texts: Sequence[str], columns: _Columns) -> Iterator[tuple[int, str]]:
    """Records with their line numbers; lines that a quoted field spans are joined."""
    at = 0
    while at < len(texts):
        text, used = texts[at], 1
        opened = _open_quote(text, columns.delimiter) if columns.quoting else None
        if opened is not None:
            for more in range(2, min(_MAX_QUOTED_LINES, len(texts) - at) + 1):
                joined = "\n".join(texts[at : at + more])
                if _ends_quoted(joined, opened, columns.delimiter):
                    text, used = joined, more
                if not _OPENED.match(joined, opened):
                    break
        yield at + 1, text
        at += used


def _open_quote(text: str, delimiter: str) -> int | None:
    """The start of the field in `text` whose opening quote is not closed, or None."""
    at = 0
    while True:
        end = _ends_quoted(text, at, delimiter)
        if end is None:
            if _OPENED.match(text, at):
                return at
            end = text.find(delimiter, at)
        if end < 0 or end >= len(text):
            return None
        at = end + 1


def _ends_quoted(text: str, at: int, delimiter: str) -> int | None:
    """The end of the quoted field that starts at `at`, or None if no complete one does."""
    quoted = _QUOTED.match(text, at)
    if quoted and (quoted.end() == len(text) or text[quoted.end()] == delimiter):
        return quoted.end()
    return None


def _split(text: str, columns: _Columns) -> list[str | None] | None:
    """A marker, None if a bar was missing and "" otherwise, and then the fields; None if there are too few.

    The last column gets the rest of the line, so that a caption may contain the delimiter.
    """
    fields: list[str | None] = [""]
    rest = text
    for _ in range(columns.count - 1):
        quoted = _QUOTED.match(rest) if columns.quoting else None
        if quoted and rest[quoted.end() : quoted.end() + 1] == columns.delimiter:
            fields.append(_unquote(quoted[0]))
            rest = rest[quoted.end() + 1 :]
            continue
        head, found, tail = rest.partition(columns.delimiter)
        if not found:
            repaired = _BAR_MISSING.fullmatch(text) if columns.delimiter == "|" and columns.count == 3 else None
            return [None, repaired[1], repaired[2], repaired[3]] if repaired else None
        fields.append(head)
        rest = tail
    fields.append(_unquote(rest) if columns.quoting else rest)
    return fields


def _unquote(field: str) -> str:
    quoted = _QUOTED.fullmatch(field)
    return quoted[1].replace('""', '"') if quoted else field
