"""Lists the members of a tar with the position of their bytes, without reading these.

Keys are WebDataset's: the member's path up to the first dot of its name. A damaged tar yields all members with
intact headers, and a note. For safety a member's name is never used as a path, and links, devices and sparse
files are skipped.
"""

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from captioning.errors import CaptioningError
from captioning.storage import Location, escape_name
from captioning.storage_errors import storage_errors

_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.[^/]*$", re.DOTALL)

#: Longer headers (names, pax records) are treated as damage: reading one could fill the memory.
_MAX_HEADER_BYTES = 1 << 20
_SCAN = 1 << 20
#: Shorter names are in the member's own header.
_MAX_SHORT_NAME = 100
_ZEROS = bytes(tarfile.BLOCKSIZE)

_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: `offset` is the position of its first byte in the tar, `size` in bytes, `mtime` in seconds.

    `key` is None for a name that WebDataset skips: one without extension, or that begins with a dot.
    """

    name: str
    key: str | None
    offset: int
    size: int
    mtime: float


def is_member(header: bytes, name: str, size: int) -> bool:
    """Whether `header`, the block before a member's first byte, is that of a file with this name and size.

    Names that are too long for this header are not compared.
    """
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    whole = name.isascii() and len(name) < _MAX_SHORT_NAME
    return found.isreg() and found.size == size and (not whole or found.name.lstrip("./") == name.lstrip("./"))


def list_tar(location: Location, note: Callable[[str], None]) -> Iterator[TarMember]:
    """The files in the tar at `location`, in order. `note` is called with messages about damage and skipped members."""
    with storage_errors(location.uri, "read"), location.open_read() as file:
        yield from _TarReader(location, file, note).members()


class _TarReader:
    """One pass over a tar: runs of members, and damage between them."""

    def __init__(self, location: Location, file: BinaryIO, note: Callable[[str], None]) -> None:
        self._location, self._note = location, note
        self._size = file.seek(0, os.SEEK_END)
        self._file = _HeaderFile(location, file)
        self._count = 0
        self._noted = False
        self._special: Counter[str] = Counter()

    def members(self) -> Iterator[TarMember]:
        """Every file with an intact header."""
        self._file.seek(0)
        head = self._file.read(tarfile.BLOCKSIZE)
        for magic, name in _COMPRESSED:
            if head.startswith(magic):
                self._note(
                    f"{self._location} is compressed ({name}): its images cannot be read individually. Decompress it."
                )
                return
        at: int | None = 0
        while at is not None:
            at = yield from self._run(at)
            if at is not None:
                at = self._next_header(at)
        if self._special:
            kinds = ", ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in self._special.items())
            self._note(f"{self._location} contains {kinds}, which were skipped: only regular files are read.")

    def _run(self, start: int) -> Generator[TarMember, None, int | None]:
        """The members from the header at `start` on; returns where to look for more, None at the end."""
        self._file.seek(start)
        tar: tarfile.TarFile | None = None
        at = start
        while True:
            try:
                if tar is None:
                    tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 - the file is closed above
                member = tar.next()
            except CaptioningError:
                raise
            except Exception as error:  # a header that makes tarfile fail is damage like any other
                if at < self._size or not self._count:
                    self._damage(at, str(error) or type(error).__name__)
                # A chain of headers that each require another one is skipped as far as it was read: from its second
                # header on the chain would be the same.
                return max(at + tarfile.BLOCKSIZE, self._file.tell() if isinstance(error, RecursionError) else 0)
            # tarfile keeps every member in memory; a tar can have millions.
            tar.members = []  # type: ignore[attr-defined]
            if member is None:
                if tar.offset >= self._size and self._size:
                    self._damage(tar.offset, "it has no end marker")
                return int(tar.offset)
            if member.size < 0 or tar.offset <= at:
                self._damage(at, "a member has an impossible size")
                return at + tarfile.BLOCKSIZE
            self._count += 1
            if self._is_plain(member):
                match = _KEY.match(member.name)
                key = match[1] if match else None
                yield TarMember(member.name, key, member.offset_data, member.size, member.mtime)
            at = tar.offset
            if at > self._size:
                # Either the tar is truncated, or the size is wrong and more members follow.
                self._damage(member.offset_data, "it ends within a member")
                return int(member.offset_data)

    def _is_plain(self, member: tarfile.TarInfo) -> bool:
        if member.isreg() and not member.issparse():
            return True
        if not member.isdir():
            kind = "sparse file" if member.isreg() else "link" if member.islnk() or member.issym() else "device"
            self._special[kind] += 1
        return False

    def _next_header(self, start: int) -> int | None:
        """The position of the first header from `start` on; None if there is none."""
        self._file.seek(min(start, self._size))
        while piece := self._file.read(_SCAN):
            for at in range(0, len(piece), tarfile.BLOCKSIZE):
                block = piece[at : at + tarfile.BLOCKSIZE]
                if block == _ZEROS[: len(block)]:
                    continue
                if _is_header(block):
                    self._note_once(
                        f"{self._location} continues after its end marker: it is several tars, joined. All were read."
                    )
                    return start + at
                self._damage(start + at, "no header where one was expected")
            start += len(piece)
        return None

    def _damage(self, at: int, reason: str) -> None:
        if not self._count and at == 0:
            self._note_once(f"{self._location} is not a readable tar ({escape_name(reason)}).")
        self._note_once(
            f"{self._location} is damaged or cut short after {self._count:,} members (byte {at:,}: "
            f"{escape_name(reason)}). What could not be read was skipped."
        )

    def _note_once(self, text: str) -> None:
        """Note only the first problem: later ones follow from it."""
        if not self._noted:
            self._note(text)
        self._noted = True


class _HeaderFile(io.RawIOBase):
    """A file that refuses large reads: a damaged header may ask for gigabytes."""

    def __init__(self, location: Location, file: BinaryIO) -> None:
        self._uri, self._file = location.uri, file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        with storage_errors(self._uri, "read"):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _is_header(block: bytes) -> bool:
    """Whether a block has the checksum of a header."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").chksum > 0
    except Exception:
        return False
