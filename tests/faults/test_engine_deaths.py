"""Kill -9 mongod before each write of an ingest and start it again: nothing that was acknowledged is lost."""

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from pymongo.monitoring import CommandListener, CommandStartedEvent

from fhir_server.engine import find_engine
from imaging.archive import RECEIVED, Archive, Stored
from imaging.blobs.gridfs import GridFsBlobs
from tests.support.engine import settings

# Of storing one instance, in order.
WRITES = {
    "garbage row": ("insert", "garbage"),
    "chunks": ("insert", "blobs.chunks"),
    "file rows": ("insert", "blobs.files"),
    "instance rows": ("insert", "instances"),
    "study marks": ("update", "studies"),
    "end of garbage": ("delete", "garbage"),
}


class Interruption(CommandListener):
    """Calls `act` just before the first command of a kind is sent."""

    def __init__(self, command: str, collection: str, act: Callable[[], None]) -> None:
        self._awaited = (command, collection)
        self._act = act
        self.acted = False

    def started(self, event: CommandStartedEvent) -> None:
        if not self.acted and (event.command_name, event.command.get(event.command_name)) == self._awaited:
            self.acted = True
            self._act()

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


@pytest.mark.slow
def test_a_database_that_dies_between_two_writes_forgets_neither(tmp_path: Path) -> None:
    data = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    engine = find_engine(settings(tmp_path))
    uri = engine.start()
    try:
        for name, (command, collection) in WRITES.items():

            def restart() -> None:
                pid = engine.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                while engine.status().running:
                    time.sleep(0.01)
                engine.start()

            interruption = Interruption(command, collection, restart)
            client: MongoClient = MongoClient(uri, tz_aware=True, event_listeners=[interruption])
            archive = Archive(client["deaths"], GridFsBlobs(client["deaths"]), clock=lambda: datetime.now(UTC))
            archive.ensure_indexes()
            try:
                (outcome,) = archive.store_all([data], admit=lambda _: None, registered_by="Organization/x")
            except AutoReconnect:  # it may; the sender sends it again
                (outcome,) = archive.store_all([data], admit=lambda _: None, registered_by="Organization/x")

            assert interruption.acted, name
            assert isinstance(outcome, Stored)
            summary = outcome.summary
            instance = archive.instance(summary.study_uid, summary.series_uid, summary.sop_uid)
            assert b"".join(archive.file(instance, RECEIVED)) == data
            assert list(archive.verify()) == []
            assert set(client["deaths"]["blobs.files"].distinct("_id")) == {instance.sha256_stored}
            archive.close()
            client.drop_database("deaths")
            client.close()
    finally:
        engine.stop()
