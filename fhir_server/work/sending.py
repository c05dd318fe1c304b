"""Images to a receiver by STOW-RS: in batches, in the form that it takes, with what it says of each instance.

Hides forms of files, batches, and the ways in which receivers refuse. Knows neither Tasks nor contracts. Memory is
bounded by what the archive prepares ahead, whatever the size of a batch: files are sent while they are made.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from fhir_server.model.peer import Form
from fhir_server.outbound.dicomweb import (
    DOUBTFUL,
    DUPLICATE,
    SYNTAX_REFUSED,
    Receipt,
    is_temporary,
    store,
    words_of,
)
from fhir_server.outbound.remote import Remote
from imaging.archive import RECEIVED, STORED, Archive, Instance, size_of_file
from imaging.errors import AppError, Category
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

BATCH_INSTANCES = 50
BATCH_BYTES = 64 << 20
PATIENCE_S = 300.0  # for one batch, besides the time that its bytes take at the slowest
SLOWEST_BYTES_PER_S = 50_000
DOUBTS = 5  # tries after which a reason that may mean anything is taken for a refusal
_PLAIN = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)

# (SOP Instance UIDs that the receiver has, those that it will not have with the reason)
Note = Callable[[Iterable[str], Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Push:
    """Sends instances to one receiver.

    form   which files are sent
    note   is told what the receiver said of each batch, at once
    went   is told how many bytes of files went out, with each piece
    tries  how often the delivery was tried, this time included
    most_s longest time for one batch, whatever its size
    """

    remote: Remote
    archive: Archive
    form: Form
    note: Note
    went: Callable[[int], None]
    tries: int
    most_s: float

    def batches(self, instances: Iterable[Instance]) -> Iterator[int]:
        """Send instances; yield after each batch how many of it the receiver now has.

        What was put off by the receiver is told by BUSY at the end. Raises what it answers to a whole request (see
        `require_good`), named after the remote; and what the archive raises.
        """
        is_native = self.form is Form.NATIVE
        postponed: dict[str, int] = {}
        for batch in _batches(instances):
            receipt = self._native(batch) if is_native else self._sent(batch, self._form_of)
            wanting = [each for each in batch if receipt.refused.get(each.sop_uid) in SYNTAX_REFUSED]
            if wanting and self.form is Form.STORED and not is_native:
                is_native = len(wanting) == len(batch)  # then it is not asked again
                receipt = _joined(receipt, self._native(wanting))
            had, refused, later = self._sorted(receipt)
            self.note(had, refused)
            postponed |= later
            yield len(had)
        if postponed:
            reason = words_of(next(iter(postponed.values())))
            message = f"{len(postponed)} instances were not taken this time: {reason}"
            raise AppError(Category.BUSY, message, where=self.remote.name)

    def _native(self, batch: Sequence[Instance]) -> Receipt:
        return self._sent(batch, native_form)

    def _form_of(self, instance: Instance) -> str:
        return RECEIVED if self.form is Form.RECEIVED else STORED

    def _sent(self, batch: Sequence[Instance], form_of: Callable[[Instance], str]) -> Receipt:
        """Send a batch; where it is too large for the receiver, its halves."""
        uids = [each.sop_uid for each in batch]
        try:
            return store(self.remote, self._files(batch, form_of), uids)
        except AppError as error:
            if error.where != self.remote.name:
                raise
            if error.category is Category.UNSUPPORTED and self.form is Form.STORED and form_of is not native_form:
                # Some refuse the request as a whole (415, say) for a syntax that they do not know.
                return Receipt(frozenset(), dict.fromkeys(uids, next(iter(SYNTAX_REFUSED))))
            if error.category is not Category.TOO_LARGE:
                raise
            if len(batch) == 1:
                return Receipt(frozenset(), {uids[0]: _TOO_LARGE})
        half = len(batch) // 2
        return _joined(self._sent(batch[:half], form_of), self._sent(batch[half:], form_of))

    def _files(self, batch: Sequence[Instance], form_of: Callable[[Instance], str]) -> Iterator[Iterator[bytes]]:
        size_bytes = sum(size_of_file(each) for each in batch)
        end = time.monotonic() + min(PATIENCE_S + size_bytes / SLOWEST_BYTES_PER_S, self.most_s)
        groups = (self.archive.files(group, form) for form, group in groupby(batch, key=form_of))
        for _, pieces in chain.from_iterable(groups):
            yield self._in_time(pieces, end)

    def _in_time(self, pieces: Iterable[bytes], end: float) -> Iterator[bytes]:
        for piece in pieces:
            if time.monotonic() > end:
                message = "it takes the images too slowly"
                raise AppError(Category.BUSY, message, where=self.remote.name)
            yield piece
            self.went(len(piece))

    def _sorted(self, receipt: Receipt) -> tuple[set[str], dict[str, str], dict[str, int]]:
        """Return what the receiver has, what it refuses, and what may be tried again."""
        had, refused, later = set(receipt.stored), {}, {}
        for uid, reason in receipt.refused.items():
            if reason == DUPLICATE:
                had.add(uid)
            elif is_temporary(reason) or (reason in DOUBTFUL and self.tries < DOUBTS):
                later[uid] = reason
            else:
                refused[uid] = "too large for the receiver" if reason == _TOO_LARGE else words_of(reason)
        return had, refused, later


def native_form(instance: Instance) -> str:
    """Return the form of an instance that every receiver reads; what was kept as received stays so."""
    if instance.received_transfer_syntax_uid in _PLAIN:
        return instance.received_transfer_syntax_uid
    return EXPLICIT_VR_LITTLE_ENDIAN if instance.is_ours or instance.layout is None else STORED


_TOO_LARGE = -1  # in place of a Failure Reason


def _batches(instances: Iterable[Instance]) -> Iterator[list[Instance]]:
    batch: list[Instance] = []
    size = 0
    for each in instances:
        batch.append(each)
        size += size_of_file(each)
        if len(batch) == BATCH_INSTANCES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(first: Receipt, second: Receipt) -> Receipt:
    """Return both answers as one; where the second speaks of an instance again, it is believed."""
    stored = first.stored | second.stored
    refused = {uid: reason for uid, reason in {**first.refused, **second.refused}.items() if uid not in stored}
    return Receipt(stored, refused)
