"""A process that stores files and dies before its n-th command to the database; started by the crash tests.

    python -m tests.faults.storing URI DATABASE N FILE...

Prints the SOP Instance UID of each instance when it is acknowledged, and `done` when it survived.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from pymongo import MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from imaging.archive import Archive, Stored
from imaging.blobs.gridfs import GridFsBlobs

WRITES = {"insert", "update", "delete", "findAndModify"}
KILLED = 9


class Reaper(CommandListener):
    """Ends the process without any clean-up just before the n-th write is sent."""

    def __init__(self, last: int) -> None:
        self._left = last

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in WRITES:
            self._left -= 1
            if self._left == 0:
                os._exit(KILLED)

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


def main(uri: str, name: str, last: str, *paths: str) -> None:
    client: MongoClient = MongoClient(uri, tz_aware=True, event_listeners=[Reaper(int(last))])
    archive = Archive(client[name], GridFsBlobs(client[name]), clock=lambda: datetime.now(UTC))
    files = (Path(path).read_bytes() for path in paths)
    for outcome in archive.store_all(files, admit=lambda _: None, registered_by="Organization/x"):
        assert isinstance(outcome, Stored)
        print(outcome.summary.sop_uid, flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
