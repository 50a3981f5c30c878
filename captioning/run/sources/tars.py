"""WebDataset tars: the images in them by their place. Knows nothing of how a tar is read (`run.tars`)."""

from collections.abc import Iterator, Sequence, Set
from itertools import islice

from captioning.run.digests import DigestSet, digests
from captioning.run.sources.base import Source, extension_of
from captioning.run.sources.entry import Entry
from captioning.run.tars import TarMember, list_tar
from captioning.storage import Location, escape_name

#: Images whose ids are looked up at once.
_TOGETHER = 1024


class TarSource(Source):
    """WebDataset tars, one, a folder or a glob of them; the id is a sample's key.

    Where a key came before, in this tar or in one before it, the id is `TAR/KEY`, and where even
    that did (two images in one sample) `TAR/MEMBER`. In an archive that was listed before an image keeps the id
    that it had, and one that is new takes none that an image of a tar has which is still there.
    """

    kind = "tars"
    suffixes = (".tar",)
    ids_by_order = True

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        containers = [*self._containers()]
        present = frozenset(tar.uri for _, tar in containers)
        for file, tar in containers:
            images = self._images(tar)
            while some := list(islice(images, _TOGETHER)):
                uris = [f"{tar.uri}#{escape_name(member.name)}" for member, _ in some]
                forms = [_forms(file.path, key, member) for member, key in some]
                for (member, _), uri, ids in zip(some, uris, self._possible(forms, uris, present), strict=True):
                    image_id = next((each for each in ids if seen.add(digests([each]))[0]), ids[-1])
                    yield Entry(self.prefix + image_id, uri, member.size, str(member.mtime), tar.uri, member.offset)

    def _images(self, tar: Location) -> Iterator[tuple[TarMember, str]]:
        """The images of a tar with their keys."""
        for member in list_tar(tar, self.notes.append):
            if member.key is None:
                self.skipped[extension_of(member.name)] += 1
            elif self._is_image(member.name):
                yield member, member.key

    def _possible(
        self, forms: Sequence[tuple[str, ...]], uris: Sequence[str], present: Set[str]
    ) -> Iterator[Sequence[str]]:
        """Of each image the ids that it may have, those that it had first."""
        if self.before is None:
            yield from forms
            return
        ids = [self.prefix + each for some in forms for each in some]
        own, holders = self.before.stand(ids, [uri for some, uri in zip(forms, uris, strict=True) for _ in some])
        at = 0
        for some in forms:
            places = range(at, at + len(some))
            at += len(some)
            had = [ids[place].removeprefix(self.prefix) for place in places if own[place]]
            free = [
                ids[place].removeprefix(self.prefix)
                for place in places
                if not own[place] and holders[place] not in present
            ]
            yield [*had, *free] or some[-1:]


def _forms(tar: str, key: str, member: TarMember) -> tuple[str, ...]:
    """What the id of a member may be, the shortest first; the last is nobody else's."""
    tar_name = escape_name(tar[: -len(".tar")])
    key, name = escape_name(key), escape_name(member.name)
    return key, f"{tar_name}/{key}", f"{tar_name}/{name}", f"{tar_name}/{name}#{member.offset}"
