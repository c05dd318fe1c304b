"""The images of one study behind pseudonyms: what a door takes for an archive, and in which nobody is named.

Every UID that goes in or comes out is a replaced one, every document and every pixel a cleaned one; errors name what
was asked for. So whoever answers with it cannot give anything else away. What a program cannot clean is left out of
studies and series, and refused by itself. Source: PS3.15 annex E.
"""

import hmac
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

import orjson

from fhir_server.aliases import Aliases, hidden
from imaging.archive import STORED, Archive, Contents, Instance
from imaging.archive.contents import kind_of
from imaging.blobs import Buffer
from imaging.codecs import Decoded, codecs
from imaging.conversion import target_layout
from imaging.dataset import read
from imaging.dataset_from_json import dataset_of
from imaging.deidentify import Options, check, described
from imaging.deidentify_stored import StoredFrames, clears_bits, head, whole_file
from imaging.dicom_json import bulkdata
from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS
from imaging.masks import Mask, mask_for
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, is_encapsulated

VERSION: Final = 2
"""Of what cleaning makes: to be raised when the same image gives something else."""

_LOOKED_AT: Final = ("00080016", "00280301", "0040A730", "00420011")  # by `imaging.deidentify.check`
_PHOTOMETRIC, _PLANAR, _PIXEL_DATA = "00280004", "00280006", "7FE00010"
_COARSE: Final = 5  # halvings of a frame that is decoded to learn what its colours mean
_MOST_SORTED: Final = 64  # series and studies of which a process remembers what can be cleaned

Document = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """How the images of a recipient are cleaned: with these options, and with what is known to be burned in."""

    options: Options
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """An instance by name, and how it is cleaned: by frames where it is kept compressed, else as a whole."""

    original: Instance
    options: Options
    frames: StoredFrames | None


@dataclass(frozen=True)
class Sorted:
    """What of a study or series can be cleaned: original SOP Instance UIDs, one of every kind, how many others."""

    members: tuple[tuple[str, str], ...]
    samples: tuple[str, ...]
    left_out: int


class Cleaned:
    """The images of a study as one recipient sees them. See `imaging.archive.Archive` for what methods return."""

    def __init__(
        self, archive: Archive, aliases: Aliases, rules: Rules, study: str, study_uid: str, known: dict[Any, Sorted]
    ) -> None:
        """Look at a study, `study` by name and `study_uid` to the recipient. `known` is remembered by the process."""
        self._archive = archive
        self._aliases = aliases
        self._rules = rules
        self._study = study
        self._study_uid = study_uid
        self._known = known
        self._plans: dict[str, _Plan] = {}  # of what was given: by replaced SOP Instance UID
        self.left_out = 0
        """How many instances of what was asked for are left out."""

    # ---- which there are

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """Return one instance. Raises NOT_FOUND; FORBIDDEN, with the reason, for what a program cannot clean."""
        return self._found(study_uid, series_uid, sop_uid)[0]

    def with_file(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """Return the same: what a cleaned file is made of is read when it is made."""
        return self.instance(study_uid, series_uid, sop_uid)

    def described(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Instance, bytes]:
        """Return one instance and its DICOM JSON."""
        instance, document = self._found(study_uid, series_uid, sop_uid)
        with hidden(sop_uid):
            return instance, self._described(self._plans[sop_uid], document)

    def contents(self, study_uid: str, series_uid: str | None = None) -> Contents:
        """Return what can be cleaned of a study or a series. Raises NOT_FOUND; FORBIDDEN where nothing can."""
        with hidden(series_uid or study_uid):
            self._require(study_uid)
            series = self._aliases.series(self._study, series_uid) if series_uid else None
            found = self._archive.contents(self._study, series)
            kept = self._sorted(found, series)
            self.left_out = kept.left_out
            if not kept.members:
                message = (
                    f"none of the {kept.left_out} instances can be cleaned by a program; somebody has to look at them"
                )
                raise AppError(Category.FORBIDDEN, message)
            samples = self._planned(kept.samples)
        replaced = self._aliases.replaced
        members = tuple((replaced(series), replaced(sop)) for series, sop in kept.members)
        version = self._digest(found.version, kept.left_out)
        return Contents(version, members, tuple(samples))

    def each(self, sop_uids: Sequence[str]) -> Iterator[Instance]:
        """Yield instances of this study in the order asked."""
        return self._planned([sop for _, sop in self._originals(sop_uids)])

    def documents(self, sop_uids: Sequence[str]) -> Iterator[bytes]:
        """Yield the cleaned DICOM JSON of instances in the order asked."""
        originals = [sop for _, sop in self._originals(sop_uids)]
        with hidden(self._study_uid):
            for original, document in self._both(originals):
                yield self._described(self._plan(original, document), document)

    def metadata(
        self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], bytes]]:
        """Yield ((study, series, SOP instance UID), cleaned DICOM JSON) in reading order."""
        if series_uid and sop_uid:
            return iter([((study_uid, series_uid, sop_uid), self.described(study_uid, series_uid, sop_uid)[1])])
        members = self.contents(study_uid, series_uid).members
        documents = self.documents([sop for _, sop in members])
        return (((study_uid, *uids), each) for uids, each in zip(members, documents, strict=True))

    # ---- what they are

    def files(self, instances: Iterable[Instance], form: str) -> Iterator[tuple[Instance, Iterable[bytes]]]:
        """Yield each instance with the pieces of its cleaned file: STORED or a transfer syntax UID."""
        for instance in instances:
            yield instance, self.file(instance, form)

    def file(self, instance: Instance, form: str) -> Iterator[bytes]:
        """Return the pieces of one cleaned file."""
        with hidden(instance.sop_uid):
            pieces = self._file(instance, form)
        return _hidden(pieces, instance.sop_uid)

    def decided(self, study_uid: str) -> str:
        """Return what changes with every decision about attributes of the study."""
        with hidden(study_uid):
            self._require(study_uid)
            return self._digest("decided", self._archive.decided(self._study))

    def length(self, instance: Instance, form: str) -> int | None:
        """Return None: a cleaned file has to be made for its length to be known."""
        return None

    def frame(self, instance: Instance, number: int, transfer_syntax_uid: str) -> bytes:
        """Return one frame in a transfer syntax."""
        with hidden(instance.sop_uid):
            plan = self._plans[instance.sop_uid]
            if plan.frames is None:
                return self._archive.frame(plan.original, number, transfer_syntax_uid)
            stored = self._archive.frame(plan.original, number)
            return plan.frames.frame(stored, number, transfer_syntax_uid)

    def pixels(self, instance: Instance, number: int, *, reduce_levels: int = 0) -> Decoded:
        """Return one frame decoded, sides halved `reduce_levels` times."""
        with hidden(instance.sop_uid):
            plan = self._plans[instance.sop_uid]
            if plan.frames is None:
                return self._archive.pixels(plan.original, number, reduce_levels=reduce_levels)
            return plan.frames.decoded(self._archive.frame(plan.original, number), number, reduce_levels=reduce_levels)

    def bulkdata(self, instance: Instance, path: str) -> Buffer:
        """Return the value that a bulk data URI of the cleaned metadata stands for: out of the cleaned file."""
        with hidden(instance.sop_uid):
            plan = self._plans[instance.sop_uid]
            is_pixels = path.rpartition("/")[2].upper() in _PIXELS
            if plan.frames is None or not plan.frames.layout.encapsulated or is_pixels:
                return bulkdata(read(b"".join(self._file(instance, STORED))), path)[0]
            stored = read(self._archive.buffer(plan.original, STORED))
            return bulkdata(head(stored, self._aliases.key, plan.options), path)[0]

    # ---- inside

    def _require(self, study_uid: str) -> None:
        if study_uid != self._study_uid:
            raise AppError(Category.NOT_FOUND, "no such study")

    def _found(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Instance, bytes]:
        with hidden(sop_uid):
            self._require(study_uid)
            original, document = self._archive.described(
                self._study, *self._aliases.member(self._study, sop_uid, series_uid)
            )
            self._plan(original, document)
            return self._renamed(sop_uid), document

    def _originals(self, sop_uids: Sequence[str]) -> Iterator[tuple[str, str]]:
        return (self._aliases.member(self._study, uid) for uid in sop_uids)

    def _sorted(self, found: Contents, series: str | None) -> Sorted:
        """Return what can be cleaned; as long as the study does not change, it is looked at once."""
        place = (found.version, series, self._rules)
        if place not in self._known:
            if len(self._known) >= _MOST_SORTED:
                self._known.clear()
            self._known[place] = self._judged(found)
        return self._known[place]

    def _judged(self, found: Contents) -> Sorted:
        kept: list[tuple[str, str]] = []
        samples: dict[object, str] = {}
        for member, (original, document) in zip(found.members, self._both(found.sop_uids), strict=True):
            with suppress(AppError):
                frames = self._way(original, document).frames
                kept.append(member)
                samples.setdefault((kind_of(original), bool(frames and frames.changes_pixels)), member[1])
        return Sorted(tuple(kept), tuple(samples.values()), len(found.members) - len(kept))

    def _planned(self, originals: Sequence[str]) -> Iterator[Instance]:
        with hidden(self._study_uid):
            for original, document in self._both(originals):
                self._plan(original, document)
                yield self._renamed(self._aliases.replaced(original.sop_uid))

    def _both(self, originals: Sequence[str]) -> Iterator[tuple[Instance, bytes]]:
        """Yield instances by name with their DICOM JSON."""
        return zip(self._archive.each(originals), self._archive.documents(originals), strict=True)

    def _plan(self, original: Instance, document: bytes) -> _Plan:
        """Return how an instance is cleaned, and remember it. Raises FORBIDDEN where that cannot be."""
        uid = self._aliases.replaced(original.sop_uid)
        if uid not in self._plans:
            self._plans[uid] = self._way(original, document)
        return self._plans[uid]

    def _way(self, original: Instance, document: bytes) -> _Plan:
        """Return how a program can clean an instance. Raises FORBIDDEN, with the reason, where it cannot."""
        told = orjson.loads(document)
        layout, options, is_opaque = original.layout, self._rules.options, _is_opaque(original)
        mask = None if is_opaque else mask_for(told, layout, self._rules.masks)
        if mask:
            options = replace(options, clean_pixels=True)
        ds = dataset_of({tag: _short(told[tag]) for tag in _LOOKED_AT if tag in told})
        try:
            check(ds, original.received_transfer_syntax_uid, options, has_pixels=layout is not None)
        except AppError as error:
            raise AppError(Category.FORBIDDEN, f"not given without names: {error.message}") from None
        if layout is None:
            return _Plan(original, options, None)
        frames = StoredFrames(
            layout,
            original.stored_transfer_syntax_uid,
            original.is_ours,
            clears_bits(told, layout),
            mask.rectangles if mask else (),
        )
        if is_opaque and frames.changes_pixels:
            message = "not given without names: an overlay may lie in pixels that cannot be decoded"
            raise AppError(Category.FORBIDDEN, message)
        return _Plan(
            original, options, frames if not is_opaque and (layout.encapsulated or frames.changes_pixels) else None
        )

    def _renamed(self, uid: str) -> Instance:
        """Return an instance as the recipient knows it, and as far as a door may tell of it."""
        plan = self._plans[uid]
        original, replaced = plan.original, self._aliases.replaced
        syntaxes = [original.stored_transfer_syntax_uid, original.received_transfer_syntax_uid]
        layout = original.layout
        if layout is None or (plan.frames and plan.frames.changes_pixels):
            syntaxes = [EXPLICIT_VR_LITTLE_ENDIAN] * 2
        stored, received = (each if is_encapsulated(each) else EXPLICIT_VR_LITTLE_ENDIAN for each in syntaxes)
        tag = self._digest(original.sha256_received)
        return replace(
            original,
            study_uid=self._study_uid,
            series_uid=replaced(original.series_uid),
            sop_uid=uid,
            stored_transfer_syntax_uid=stored,
            received_transfer_syntax_uid=received,
            layout=replace(layout, encapsulated=is_encapsulated(stored)) if layout else None,
            sha256_stored=tag,
            sha256_received=tag,
            sha256_pixels=None,
            registered_by="",
            checksums=b"",
        )

    def _digest(self, *words: object) -> str:
        """Return what stands for content of a recipient: equal for nobody else."""
        text = "\n".join(map(str, (VERSION, self._rules, *words)))
        return hmac.digest(self._aliases.key, text.encode(), sha256).hex()

    def _described(self, plan: _Plan, document: bytes) -> bytes:
        told = described(document, self._aliases.key, plan.options)
        return self._made_anew(plan.original, plan.frames, told) if plan.frames and plan.frames.changes_pixels else told

    def _made_anew(self, original: Instance, frames: StoredFrames, told: bytes) -> bytes:
        """Return DICOM JSON as it is of native pixels: colours are not those of codestreams, nor apart in planes."""
        model = orjson.loads(told)
        model[_PIXEL_DATA]["vr"] = "OB" if frames.layout.bits_allocated <= 8 else "OW"
        if frames.layout.samples_per_pixel > 1:
            decoded = self._archive.pixels(original, 1, reduce_levels=_COARSE)
            layout = target_layout(frames.layout, decoded.photometric_interpretation, EXPLICIT_VR_LITTLE_ENDIAN)
            model[_PHOTOMETRIC] = {"vr": "CS", "Value": [layout.photometric_interpretation]}
            if _PLANAR in model:
                model[_PLANAR]["Value"] = [layout.planar_configuration]
        return orjson.dumps(model)

    def _file(self, instance: Instance, form: str) -> Iterator[bytes]:
        plan = self._plans[instance.sop_uid]
        to_uid = instance.stored_transfer_syntax_uid if form == STORED else form
        original, key, options, frames = plan.original, self._aliases.key, plan.options, plan.frames
        is_made = to_uid == original.stored_transfer_syntax_uid or bool(codecs.get(to_uid).encode)
        if frames is None or not frames.layout.encapsulated or not is_made:
            file = b"".join(self._archive.file(original, original.received_transfer_syntax_uid))
            return whole_file(file, to_uid, key, options, frames.rectangles if frames else ())
        stored = read(self._archive.buffer(original, STORED))
        return frames.file(stored, to_uid, key, options)


_PIXELS: Final = {f"{tag:08X}" for tag in PIXEL_KEYWORDS}


def _is_opaque(original: Instance) -> bool:
    layout = original.layout
    return (
        layout is not None
        and layout.encapsulated
        and (original.stored_transfer_syntax_uid not in codecs or not original.frames)
    )


def _hidden(pieces: Iterable[bytes], uid: str) -> Iterator[bytes]:
    with hidden(uid):
        yield from pieces


def _short(attribute: Document) -> Document:
    """Return an attribute without what is inside: that a sequence or a document is there is enough."""
    return {"vr": attribute["vr"]} if attribute["vr"] in ("SQ", "OB") else attribute
