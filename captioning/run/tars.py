"""The members of a tar, and where each one's bytes are, without reading them.

Keys are WebDataset's: the member's path up to the first dot of its name. A damaged tar gives the
members before the damage, and a note. Knows nothing of images.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from captioning.storage import Location
from captioning.storage_errors import storage_errors

_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.[^/]*$", re.DOTALL)


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: `offset` is the place of its first byte in the tar, `size` in bytes, `mtime` in seconds."""

    name: str
    key: str
    offset: int
    size: int
    mtime: float


def list_tar(location: Location, note: Callable[[str], None]) -> Iterator[TarMember]:
    """The files in the tar at `location`, in its own order. `note` is told of damage."""
    with storage_errors(location.uri, "read"), location.open_read() as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        count = 0
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is closed above
        except tarfile.TarError as error:
            if size:
                note(f"{location} is no tar that can be read ({error}).")
            return
        while True:
            try:
                member = tar.next()
            except (tarfile.TarError, EOFError) as error:
                note(f"{location} is damaged after {count} members: {error}. What follows was left out.")
                return
            if member is None:
                break
            # A tar remembers every member it has met: forget them, a shard can hold millions.
            tar.members = []  # type: ignore[attr-defined]
            count += 1
            match = _KEY.match(member.name)
            if member.isreg() and match is not None:
                yield TarMember(member.name, match[1], member.offset_data, member.size, member.mtime)
        end = tar.offset
        file.seek(min(end, size))
        if end > size or file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            note(f"{location} is damaged or cut short after {count} members. What follows was left out.")
