"""WebDataset tars, whose images are identified by their position; `run.tars` reads the tars."""

from collections.abc import Iterator, Sequence, Set
from itertools import islice

from captioning.run.digests import DigestSet, digests
from captioning.run.sources.base import Source, extension_of
from captioning.run.sources.entry import Entry
from captioning.run.tars import TarMember, list_tar
from captioning.storage import Location, escape_name

#: Images whose ids are looked up together.
_LOOKUP_BATCH = 1024


class TarSource(Source):
    """WebDataset tars: one, a folder or a glob of them; the id is a sample's key.

    For a key that came before, in this tar or an earlier one, the id is `TAR/KEY`, and if that came before too (two
    images in one sample) `TAR/MEMBER`. When an archive is listed again, images keep their ids, and a new image never
    takes the id of an image whose tar is still there.
    """

    kind = "tars"
    suffixes = (".tar",)
    ids_depend_on_order = True

    def _entries(self) -> Iterator[Entry]:
        seen = DigestSet()
        containers = [*self._containers()]
        present = frozenset(tar.uri for _, tar in containers)
        for file, tar in containers:
            images = self._images(tar)
            while some := list(islice(images, _LOOKUP_BATCH)):
                uris = [f"{tar.uri}#{escape_name(member.name)}" for member, _ in some]
                forms = [_id_forms(file.path, key, member) for member, key in some]
                for (member, _), uri, ids in zip(some, uris, self._candidate_ids(forms, uris, present), strict=True):
                    image_id = next((each for each in ids if seen.add(digests([each]))[0]), ids[-1])
                    yield Entry(self.prefix + image_id, uri, member.size, str(member.mtime), tar.uri, member.offset)

    def _images(self, tar: Location) -> Iterator[tuple[TarMember, str]]:
        """The images of a tar with their keys."""
        for member in list_tar(tar, self.notes.append):
            if member.key is None:
                self.skipped[extension_of(member.name)] += 1
            elif self._is_image(member.name):
                yield member, member.key

    def _candidate_ids(
        self, forms: Sequence[tuple[str, ...]], uris: Sequence[str], present: Set[str]
    ) -> Iterator[Sequence[str]]:
        """For each image the ids that it may have, beginning with those that it had before."""
        if self.previous is None:
            yield from forms
            return
        ids = [self.prefix + each for some in forms for each in some]
        own, holders = self.previous.lookup(ids, [uri for some, uri in zip(forms, uris, strict=True) for _ in some])
        at = 0
        for some in forms:
            places = range(at, at + len(some))
            at += len(some)
            own_ids = [ids[place].removeprefix(self.prefix) for place in places if own[place]]
            free = [
                ids[place].removeprefix(self.prefix)
                for place in places
                if not own[place] and holders[place] not in present
            ]
            yield [*own_ids, *free] or some[-1:]


def _id_forms(tar: str, key: str, member: TarMember) -> tuple[str, ...]:
    """The possible ids of a member, shortest first; the last is unique."""
    tar_name = escape_name(tar[: -len(".tar")])
    key, name = escape_name(key), escape_name(member.name)
    return key, f"{tar_name}/{key}", f"{tar_name}/{name}", f"{tar_name}/{name}#{member.offset}"
