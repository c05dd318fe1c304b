"""Build the search rows of resources again, after a search parameter or the way rows are made has changed.

May run beside a working server: a resource that changes meanwhile is left to its own write, which makes new rows.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from pymongo import UpdateOne
from pymongo.database import Database

from fhir_server.model.criteria import Table
from fhir_server.model.definitions import parameters
from fhir_server.store import index
from fhir_server.store.documents import BODY_FIELDS, resource_of

BATCH = 200  # resources
ROW_FIELDS = (*index.ARRAYS.values(), "sort", "compartments", "near", "inside")


def reindex_resources(
    database: Database[dict[str, Any]],
    progress: Callable[[int, int], None],
    *,
    base_url: str = "",
    table: Table = parameters,
    types: Sequence[str] = (),
) -> int:
    """Make the rows of all current resources anew and return how many there were.

    base_url   this server's FHIR base: absolute references to it count as relative ones
    progress   is told how many of how many are done
    table      the search parameters of each type
    types      of which the resources are; all without any
    """
    collection = database["resources"]
    wanted: dict[str, Any] = {"type": {"$in": list(types)} if types else {"$exists": True}}
    total = collection.count_documents(wanted) if types else collection.estimated_document_count()
    done = 0
    current = collection.find(wanted, BODY_FIELDS).sort("_id")
    for batch in _batches(current):
        collection.bulk_write([_change(document, base_url, table) for document in batch], ordered=False)
        done += len(batch)
        progress(done, max(done, total))
    return done


def _batches(documents: Any) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(documents, BATCH)):
        yield batch


def _change(document: dict[str, Any], base_url: str, table: Table) -> UpdateOne:
    rows = index.rows(resource_of(document["_id"], document).json(), base_url=base_url, table=table)
    gone = {name: "" for name in ROW_FIELDS if name not in rows}
    change = {**({"$set": rows} if rows else {}), **({"$unset": gone} if gone else {})}
    return UpdateOne({"_id": document["_id"], "version": document["version"]}, change)
