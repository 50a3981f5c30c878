"""The members of a tar, and where each one's bytes are, without reading them.

Keys are WebDataset's: the member's path up to the first dot of its name. Of a damaged tar come
all members whose headers are whole, and a note. A member's name is only ever a text here: no
path is made of it, and a link, a device or a sparse file is never followed. Knows nothing of images.
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

#: Longer headers (names, pax records) are no file's: reading one whole could fill the memory.
_LONGEST_HEADER = 1 << 20
_SCAN = 1 << 20
#: A name shorter than this stands in the member's own header.
_SHORT_NAME = 100
_ZEROS = bytes(tarfile.BLOCKSIZE)

_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: `offset` is the place of its first byte in the tar, `size` in bytes, `mtime` in seconds.

    `key` is None for a name that WebDataset passes over: one without extension, or that begins with a dot.
    """

    name: str
    key: str | None
    offset: int
    size: int
    mtime: float


def is_member(header: bytes, name: str, size: int) -> bool:
    """Whether `header`, the block before a member's first byte, is that of a file of this name and size.

    Names that a header has no room for stand elsewhere, and are not compared.
    """
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    whole = name.isascii() and len(name) < _SHORT_NAME
    return found.isreg() and found.size == size and (not whole or found.name.lstrip("./") == name.lstrip("./"))


def list_tar(location: Location, note: Callable[[str], None]) -> Iterator[TarMember]:
    """The files in the tar at `location`, in its own order. `note` is told of damage and of what is no file."""
    with storage_errors(location.uri, "read"), location.open_read() as file:
        yield from _Reading(location, file, note).members()


class _Reading:
    """One pass over a tar: runs of members, and what is between them where it is damaged."""

    def __init__(self, location: Location, file: BinaryIO, note: Callable[[str], None]) -> None:
        self._location, self._note = location, note
        self._size = file.seek(0, os.SEEK_END)
        self._file = _Headers(location, file)
        self._count = 0
        self._told = False
        self._special: Counter[str] = Counter()

    def members(self) -> Iterator[TarMember]:
        """Every file with a whole header."""
        self._file.seek(0)
        head = self._file.read(tarfile.BLOCKSIZE)
        for magic, name in _COMPRESSED:
            if head.startswith(magic):
                self._note(f"{self._location} is compressed ({name}): its images cannot be reached singly. Unpack it.")
                return
        at: int | None = 0
        while at is not None:
            at = yield from self._run(at)
            if at is not None:
                at = self._next_header(at)
        if self._special:
            kinds = ", ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in self._special.items())
            self._note(f"{self._location} holds {kinds}, which were passed over: only plain files are read.")

    def _run(self, start: int) -> Generator[TarMember, None, int | None]:
        """The members from the header at `start` on; returns where to look for more, None at the very end."""
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
            except Exception as error:  # a header that breaks tarfile is damage like any other
                if at < self._size or not self._count:
                    self._damage(at, str(error) or type(error).__name__)
                # Headers that each want another one behind them are passed over as far as they were read: the chain
                # from its second one on would be the same again.
                return max(at + tarfile.BLOCKSIZE, self._file.tell() if isinstance(error, RecursionError) else 0)
            # A tar remembers every member it has met: forget them, a shard can hold millions.
            tar.members = []  # type: ignore[attr-defined]
            if member is None:
                if tar.offset >= self._size and self._size:
                    self._damage(tar.offset, "it has no end marker")
                return int(tar.offset)
            if member.size < 0 or tar.offset <= at:
                self._damage(at, "a member has no possible size")
                return at + tarfile.BLOCKSIZE
            self._count += 1
            if self._is_plain(member):
                match = _KEY.match(member.name)
                key = match[1] if match else None
                yield TarMember(member.name, key, member.offset_data, member.size, member.mtime)
            at = tar.offset
            if at > self._size:
                # Either the tar was cut short, or the size is wrong and more members follow.
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
        """The first block from `start` on that is the header of a member; None when there is none."""
        self._file.seek(min(start, self._size))
        while piece := self._file.read(_SCAN):
            for at in range(0, len(piece), tarfile.BLOCKSIZE):
                block = piece[at : at + tarfile.BLOCKSIZE]
                if block == _ZEROS[: len(block)]:
                    continue
                if _is_header(block):
                    self._tell(f"{self._location} goes on behind its end marker: tars were joined. All were read.")
                    return start + at
                self._damage(start + at, "no header where one should be")
            start += len(piece)
        return None

    def _damage(self, at: int, reason: str) -> None:
        if not self._count and at == 0:
            self._tell(f"{self._location} is no tar that can be read ({escape_name(reason)}).")
        self._tell(
            f"{self._location} is damaged or cut short after {self._count:,} members (byte {at:,}: "
            f"{escape_name(reason)}). What could not be read was left out."
        )

    def _tell(self, text: str) -> None:
        """Note the first thing that is wrong: the rest follows from it."""
        if not self._told:
            self._note(text)
        self._told = True


class _Headers(io.RawIOBase):
    """A file that gives headers and no more: what a damaged tar asks for may be all of its gigabytes."""

    def __init__(self, location: Location, file: BinaryIO) -> None:
        self._uri, self._file = location.uri, file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        with storage_errors(self._uri, "read"):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _is_header(block: bytes) -> bool:
    """Whether a block carries the checksum of a header."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").chksum > 0
    except Exception:
        return False
