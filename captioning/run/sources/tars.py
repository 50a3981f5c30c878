"""WebDataset tars: the images in them by their place. Knows nothing of how a tar is read (`run.tars`)."""

from collections.abc import Iterator

from captioning.run.digests import DigestSet, digests
from captioning.run.sources.base import Source, extension_of
from captioning.run.sources.entry import Entry
from captioning.run.tars import TarMember, list_tar
from captioning.storage import escape_name


class TarSource(Source):
    """WebDataset tars, one, a folder or a glob of them; the id is a sample's key.

    Where a key came before, in this tar or in one before it, the id is `TAR/KEY`, and where even
    that did (two images in one sample) `TAR/MEMBER`. A tar that is new to an archive therefore comes after those
    that were there, whatever its name: their ids stay.
    """

    kind = "tars"
    suffixes = (".tar",)
    ids_by_order = True

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        containers = self._containers()
        if self.listed_before:
            order = {tar: place for place, tar in enumerate(self.listed_before)}
            containers = iter(sorted(containers, key=lambda each: order.get(each[1].uri, len(order))))
        for file, tar in containers:
            for member in list_tar(tar, self.notes.append):
                if member.key is None:
                    self.skipped[extension_of(member.name)] += 1
                elif self._is_image(member.name):
                    image_id = _tar_id(file.path, member.key, member, seen)
                    uri = f"{tar.uri}#{escape_name(member.name)}"
                    yield Entry(self.prefix + image_id, uri, member.size, str(member.mtime), tar.uri, member.offset)


def _tar_id(tar: str, key: str, member: TarMember, seen: DigestSet) -> str:
    tar_name = escape_name(tar[: -len(".tar")])
    key, name = escape_name(key), escape_name(member.name)
    for image_id in (key, f"{tar_name}/{key}", f"{tar_name}/{name}"):
        if seen.add(digests([image_id]))[0]:
            return image_id
    return f"{tar_name}/{name}#{member.offset}"
