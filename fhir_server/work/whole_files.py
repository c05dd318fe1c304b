"""Processing of whole files: algorithms that replace what images say of themselves, and not only their pixels.

What they make belongs to a new study. Nothing is stored until all files of a series are made, since a part of a series
would pass for the whole.
"""

from collections.abc import Iterable, Iterator, Sequence

from fhir_server.deidentified import secret_name
from fhir_server.model.task import Json
from fhir_server.work.backing import Backing
from fhir_server.work.orders import Order
from fhir_server.work.recipients import receivers
from fhir_server.work.selection import Chosen
from imaging.algorithm import Algorithm
from imaging.spool import Spool, Spooled


def made_of(server: Backing, task: Json, order: Order, ready: Algorithm, group: Sequence[Chosen]) -> list[Spooled]:
    """Return the files that an algorithm makes of those of a series."""
    key = server.secret(secret_name(_recipient(server, task, order)))
    chosen = (instance for each in group for instance in each.instances)
    # As they are corrected: pseudonyms follow from the right Patient ID.
    given = (b"".join(server.archive.file(each, each.received_transfer_syntax_uid)) for each in chosen)
    return list(_waiting(ready(given, key).files))


def _recipient(server: Backing, task: Json, order: Order) -> str:
    """Return the subscriber, "Organization/...", for whom pseudonyms are: who gets the result, else who orders it."""
    if not order.deliver_to:
        return str(task["requester"]["reference"])
    (subscriber,) = {each.subscriber for each in receivers(server, order.deliver_to[0])}
    return subscriber


def _waiting(files: Iterable[bytes]) -> Iterator[Spooled]:
    for file in files:
        spool = Spool()
        spool.write(file)
        yield spool.finish()
