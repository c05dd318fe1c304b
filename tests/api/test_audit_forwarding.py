"""The audit record on its way to a collector over TLS. RFC 5424, RFC 5425; IHE ITI TF-2 3.20; PS3.15 A.5, A.6."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymongo.database import Database

from fhir_server import config as settings
from fhir_server.access.audit import Access
from fhir_server.access.contracts import Right
from fhir_server.app import assemble
from fhir_server.background import forwarding
from fhir_server.model.dates import to_instant
from fhir_server.store.chain import Chain
from fhir_server.store.lease import Leases
from fhir_server.store.trail import MARGIN, Trail
from fhir_server.work.forwarding import AT_A_TIME, LEASE, LEASE_S, Forwarding
from imaging.errors import AppError, Category
from tests.support.certificates import identity
from tests.support.doors import Caller, Doors, opened
from tests.support.syslog import SCHEMA, Collector, collecting, parsed

NEVER = threading.Event()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity(tmp_path_factory.mktemp("collector") / "files", trustme.CA())


@pytest.fixture
def collector(files: Path) -> Iterator[Collector]:
    with collecting(files) as found:
        yield found


@pytest.fixture
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    for name in ("chains", "forwarding", "leases"):
        module_db[name].delete_many({})
    module_db["resources"].delete_many({"chain.n": {"$exists": True}})
    with opened(module_db) as made:
        yield made


@pytest.fixture
def caller(doors: Doors) -> Caller:
    return doors.caller(Right.RECEIVE_IMAGES)


def forwarder(doors: Doors, files: Path, port: int, *, scheme: str = "tls", **changes: str) -> Forwarding:
    given = {
        "audit.repository": f"{scheme}://127.0.0.1:{port}", "audit.ca_bundle": str(files / "ca.pem"),
        "audit.timeout_s": "3", "audit.source": "images-1",
        **{name.replace("_", ".", 1): value for name, value in changes.items()},
    }  # fmt: skip
    config = settings.load(given, environment={})
    found = forwarding(replace(doors.server, config=config))
    assert found is not None
    return found


def recorded(database: Database[Any]) -> list[str]:
    """When each entry of the record was made, in order."""
    found = database["resources"].find({"chain.n": {"$exists": True}}).sort([("lastUpdated", 1), ("chain.n", 1)])
    return [to_instant(each["lastUpdated"]) for each in found]


def state(doors: Doors) -> Any:
    return Trail(doors.server.database, doors.server.clock).state()


def test_everything_on_record_arrives_in_order_once_and_as_dicom_says(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    for number in range(30):
        caller.get(f"/fhir/Patient?name=Doe&_count={number + 1}")
    here = forwarder(doors, files, collector.port)

    here.round(NEVER)
    here.round(NEVER)

    assert len(collector.came) == len(recorded(doors.server.database)) >= 30
    assert [each.at for each in collector.came] == recorded(doors.server.database)
    for each in collector.came:
        assert (each.priority, each.app, each.msgid) == (85, "fhir-imaging", "DICOM+RFC3881")
        SCHEMA.assertValid(each.xml)
        assert each.xml.find("AuditSourceIdentification").get("AuditSourceID") == "images-1"
        assert b"Doe" not in each.body
    assert state(doors).waiting == 0
    assert state(doors).arrived is not None


def test_what_ended_badly_is_a_warning(doors: Doors, caller: Caller, files: Path, collector: Collector) -> None:
    caller.get("/fhir/Patient/nobody")

    forwarder(doors, files, collector.port).round(NEVER)

    assert collector.came[-1].priority == 84  # 10 * 8 + 4
    assert collector.came[-1].xml.find("EventIdentification").get("EventOutcomeIndicator") == "4"


def test_chains_of_several_processes_come_as_one_in_the_order_of_time(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    other = assemble(doors.server.config, doors.server.database, clock=doors.clock)
    principal = doors.server.principals.authenticate(caller.token)
    for number in range(2 * AT_A_TIME + 50):
        server = other if number % 5 == 0 else doors.server
        doors.clock.forward(milliseconds=1)
        server.audit.record(principal, Access.READ, resources=[f"Patient/{number}"])

    forwarder(doors, files, collector.port).round(NEVER)

    came = [each.xml.find("ParticipantObjectIdentification").get("ParticipantObjectID") for each in collector.came]
    assert came == [f"Patient/{number}" for number in range(2 * AT_A_TIME + 50)]


def test_nothing_is_lost_while_nobody_listens(doors: Doors, caller: Caller, files: Path, collector: Collector) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()[1]
    caller.get("/fhir/Patient")
    with pytest.raises(AppError, match="refused") as refused:
        forwarder(doors, files, closed).round(NEVER)
    assert refused.value.category is Category.BUSY
    waiting = state(doors)
    caller.get("/fhir/Patient")

    forwarder(doors, files, collector.port).round(NEVER)

    assert waiting.waiting == 1
    assert waiting.oldest is not None
    assert [each.at for each in collector.came] == recorded(doors.server.database)


def test_why_nothing_arrives_is_known_and_forgotten_when_it_does(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    caller.get("/fhir/Patient")
    stopping = threading.Event()
    collector.is_deaf = True
    here = forwarder(doors, files, collector.port)
    running = threading.Thread(target=here.run, args=(stopping,))
    running.start()
    try:
        assert _waits(lambda: state(doors).failure)
        assert state(doors).since is not None
        collector.is_deaf = False
        assert _waits(lambda: collector.came)
        assert _waits(lambda: not state(doors).failure)
    finally:
        stopping.set()
        running.join(20)

    assert state(doors).since is None
    assert len(collector.came) == 1
    assert Leases(doors.server.database, doors.server.clock).claim(LEASE, "next", 1.0) is not None  # it was given back


def _waits(condition: Callable[[], object]) -> bool:
    pause = threading.Event()
    for _ in range(300):
        if condition():
            return True
        pause.wait(0.05)
    return False


def test_a_burst_that_breaks_off_is_sent_again(doors: Doors, caller: Caller, files: Path, collector: Collector) -> None:
    for _ in range(10):
        caller.get("/fhir/Patient")
    collector.forgets_after = 4
    with pytest.raises(AppError):
        forwarder(doors, files, collector.port).round(NEVER)
    before = len(collector.came)
    collector.forgets_after = -1

    forwarder(doors, files, collector.port).round(NEVER)

    assert before == 4
    assert [each.at for each in collector.came[before:]] == recorded(doors.server.database)


def test_what_a_dead_process_sent_is_sent_again(
    doors: Doors, caller: Caller, files: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller.get("/fhir/Patient")
    with monkeypatch.context() as patched:
        patched.setattr(Trail, "arrived", _dies)
        with pytest.raises(KeyboardInterrupt):
            forwarder(doors, files, collector.port).round(NEVER)

    doors.server.database["leases"].delete_many({})  # its time is over
    forwarder(doors, files, collector.port).round(NEVER)

    assert len(collector.came) == 2
    assert collector.came[0].body == collector.came[1].body


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_collector_that_closes_before_it_reads_has_got_nothing(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    caller.get("/fhir/Patient")
    collector.is_deaf = True

    with pytest.raises(AppError):
        forwarder(doors, files, collector.port).round(NEVER)

    assert state(doors).waiting == 1


def test_a_collector_that_closes_without_telling_has_got_everything(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    caller.get("/fhir/Patient")
    collector.tells_end = False  # as rsyslog with GnuTLS

    forwarder(doors, files, collector.port).round(NEVER)

    assert len(collector.came) == 1
    assert state(doors).waiting == 0


def test_one_process_at_a_time_forwards(doors: Doors, caller: Caller, files: Path, collector: Collector) -> None:
    caller.get("/fhir/Patient")
    leases = Leases(doors.server.database, doors.server.clock)
    held = leases.claim(LEASE, "another", LEASE_S)
    here = forwarder(doors, files, collector.port)

    here.round(NEVER)
    before = len(collector.came)
    assert held is not None
    leases.finish(held)
    here.round(NEVER)

    assert (before, len(collector.came)) == (0, 1)


def test_a_chain_that_was_silent_for_long_is_found_again(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    here = forwarder(doors, files, collector.port)
    caller.get("/fhir/Patient")
    here.round(NEVER)
    chains = doors.server.database["chains"]
    chains.update_many({}, {"$set": {"at": datetime.now(UTC) - 10 * MARGIN}})
    here.round(NEVER)

    _let_a_second_pass(doors)
    caller.get("/fhir/Patient")
    here.round(NEVER)

    assert len(collector.came) == 2


def _let_a_second_pass(doors: Doors) -> None:
    """As if the last head had been written down longer ago."""
    doors.server.audit._chain._next_head = 0.0


def test_an_entry_behind_the_last_head_is_found_although_its_process_died(
    doors: Doors, caller: Caller, files: Path, collector: Collector
) -> None:
    for _ in range(5):
        caller.get("/fhir/Patient")  # within one second: the head tells of the first alone

    forwarder(doors, files, collector.port).round(NEVER)

    assert len(collector.came) == 5


def test_chains_of_an_older_version_are_found(doors: Doors, caller: Caller, files: Path, collector: Collector) -> None:
    caller.get("/fhir/Patient")
    doors.server.database["chains"].update_many({}, {"$unset": {"at": ""}})
    doors.server.database["forwarding"].insert_one({"_id": "looked", "at": datetime.now(UTC)})

    forwarder(doors, files, collector.port).round(NEVER)

    assert len(collector.came) == 1


def test_a_chain_is_written_down_before_its_first_entry(db: Database[dict[str, Any]]) -> None:
    chain = Chain(db, b"k" * 32)
    chain.ensure_indexes()

    with pytest.raises(KeyboardInterrupt):
        chain.add([{"_id": "AuditEvent/1", "body": b"{}"}], _dies)

    (head,) = db["chains"].find()
    assert head["n"] == 0
    assert datetime.now(UTC) - head["at"] < timedelta(minutes=5)


# ---- TLS


def test_a_certificate_of_somebody_else_is_not_believed(
    doors: Doors, caller: Caller, files: Path, collector: Collector, tmp_path: Path
) -> None:
    caller.get("/fhir/Patient")
    others = identity(tmp_path / "others", trustme.CA())

    with pytest.raises(AppError, match="its certificate is not believed"):
        forwarder(doors, others, collector.port).round(NEVER)

    assert collector.came == []


def test_a_collector_may_ask_for_a_certificate(doors: Doors, caller: Caller, files: Path, tmp_path: Path) -> None:
    caller.get("/fhir/Patient")
    ours = identity(tmp_path / "ours", trustme.CA())
    shown = {"audit_tls_certificate": str(ours / "certificate.pem"), "audit_tls_key": str(ours / "key.pem")}
    with collecting(files, clients=ours / "ca.pem") as strict:
        for _ in range(20):
            # Whether the reason is read, or lost by the reset of the connection, is up to chance.
            with pytest.raises(AppError, match=r"the TLS connection failed|reset by peer|Broken pipe"):
                forwarder(doors, files, strict.port).round(NEVER)
        assert strict.came == []

        forwarder(doors, files, strict.port, **shown).round(NEVER)

        assert len(strict.came) == 1


def test_files_that_cannot_be_used_are_named(doors: Doors, files: Path) -> None:
    with pytest.raises(AppError, match=r"audit\.ca_bundle"):
        forwarder(doors, files, 1, audit_ca_bundle=str(files / "missing.pem"))


# ---- without TLS


def test_datagrams(doors: Doors, caller: Caller, files: Path) -> None:
    caller.get("/fhir/Patient")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)

        forwarder(doors, files, collector.getsockname()[1], scheme="udp").round(NEVER)

        SCHEMA.assertValid(parsed(collector.recv(1 << 16)).xml)


@pytest.mark.parametrize(
    "text", ["syslog.test:6514", "tcp://x:1", "tls://", "tls://u@x:1", "tls://x:99999", "tls://x/y"]
)
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(AppError, match="tls://HOST:PORT"):
        settings.load({"audit.repository": text}, environment={})
