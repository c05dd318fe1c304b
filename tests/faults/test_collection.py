"""Collection whoever dies, and from sources that answer nonsense: each instance is stored once, and nothing is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.background import collector
from fhir_server.model.peer import Peer
from fhir_server.store import collected
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import collect
from imaging.errors import AppError
from tests.support.collecting import collecting
from tests.support.doors import Doors, new_study, opened
from tests.support.serving import children, wait_for
from tests.support.sources import LOOPBACK, Polled, Response, gone, peer_of, polled

KIND = 'multipart/related; type="application/dicom"; boundary=X'
HEAD = b"--X\r\nContent-Type: application/dicom\r\n\r\n"


@pytest.fixture(scope="module")
def serving(module_db: Database[dict[str, Any]]) -> Iterator[Polled]:
    with polled(module_db) as made:
        yield made


@pytest.fixture
def source(serving: Polled) -> Polled:
    serving.forget()
    return serving


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, outbound__private_networks=LOOPBACK, outbound__silence_s="1", collect__round_s="3") as made:
        yield made


@pytest.fixture
def peer(doors: Doors, source: Polled) -> Peer:
    return peer_of(doors, "ct", source.address, authorization=source.authorization, every_s=1.0)


def run(doors: Doors, task: str) -> Done | Later:
    return collect.run(doors.server.own.read("Task", task).json(), doors.server, lambda _: None)


def instances(doors: Doors) -> set[str]:
    return set(doors.server.database.instances.distinct("_id"))


def is_series(environment: dict[str, Any]) -> bool:
    return "/series/" in environment["PATH_INFO"] and "/instances" not in environment["PATH_INFO"]


def is_transfer(environment: dict[str, Any]) -> bool:
    return is_series(environment) or "/instances/" in environment["PATH_INFO"]


# ---- workers


def test_two_workers_share_sources_and_do_nothing_twice(
    doors: Doors, source: Polled, peer: Peer, engine_uri: str, db: Any
) -> None:
    for day in range(1, 7):
        source.store(*new_study(instances=3, StudyDate=f"2026010{day}")[1])
    wanted = instances(source.doors)

    with collecting(engine_uri, db.name, LOOPBACK), collecting(engine_uri, db.name, LOOPBACK):
        assert wait_for(lambda: instances(doors) == wanted, 60)
        assert wait_for(lambda: doors.server.collected.mark("ct").is_done, 20)
        time.sleep(3)  # of looks that find nothing

    transfers = [each for each in source.asked if "/series/" in each and "?limit" not in each]
    assert len(transfers) == len(set(transfers)) == 6
    tasks = list(doors.server.database.resources.find({"type": "Task"}))
    assert sum(_counts(doors, each["_id"])["stored"] for each in tasks) == 18
    assert {row["source"] for row in _sources(doors)} == {1}


def _sources(doors: Doors) -> list[dict[str, Any]]:
    pipeline = [{"$group": {"_id": "$_id", "source": {"$sum": 1}}}]
    return list(doors.server.database.instances.aggregate(pipeline))


def _counts(doors: Doors, key: str) -> dict[str, int]:
    task = doors.server.own.read(*key.split("/")).json()
    assert task["status"] == "completed"
    return {
        each["type"]["coding"][0]["code"]: each["valueUnsignedInt"]
        for each in task["output"]
        if "valueUnsignedInt" in each
    }


def test_a_worker_killed_in_the_middle_is_replaced_and_nothing_is_lost(
    doors: Doors, source: Polled, peer: Peer, engine_uri: str, db: Any
) -> None:
    for day in range(1, 9):
        source.store(*new_study(instances=4, StudyDate=f"2026010{day}")[1])
    wanted = instances(source.doors)
    killed: list[int] = []

    def slow(environment: dict[str, Any], start: Any) -> None:
        if is_transfer(environment):
            time.sleep(0.5)

    source.spoil = slow
    for _ in range(2):
        with collecting(engine_uri, db.name, LOOPBACK) as worker:
            seen = len(instances(doors))
            assert wait_for(lambda seen=seen: len(instances(doors)) >= min(seen + 8, len(wanted)), 60)
            killed += [worker.pid, *children(worker.pid)]
            os.kill(worker.pid, signal.SIGKILL)
    with collecting(engine_uri, db.name, LOOPBACK):
        assert wait_for(lambda: instances(doors) == wanted, 60)
        assert wait_for(lambda: doors.server.collected.mark("ct").is_done, 30)

    assert len(killed) > 2
    tasks = [each["_id"] for each in doors.server.database.resources.find({"type": "Task"})]
    counts = [_counts(doors, each) for each in tasks]
    assert sum(each["stored"] for each in counts) == len(wanted)
    assert [each[name] for each in counts for name in ("here", "refused", "failed")] == 3 * len(counts) * [0]


def test_an_instance_that_kills_the_process_costs_the_others_nothing(
    doors: Doors, source: Polled, peer: Peer, engine_uri: str, db: Any
) -> None:
    source.store(*new_study(instances=4, series=2)[1])
    wanted = instances(source.doors)
    poison = source.doors.server.database.instances.find_one({}, {"series": 1})
    deaths: list[int] = []

    with collecting(engine_uri, db.name, LOOPBACK) as worker:

        def kill(environment: dict[str, Any], start: Any) -> Any:
            path = environment["PATH_INFO"]
            if path.endswith(poison["_id"]) or (is_series(environment) and path.endswith(poison["series"])):
                for pid, words in children(worker.pid).items():
                    if any("spawn_main" in word for word in words):
                        deaths.append(pid)
                        os.kill(pid, signal.SIGKILL)
            return None

        source.spoil = kill
        assert wait_for(lambda: instances(doors) == wanted - {poison["_id"]}, 60)
        assert wait_for(lambda: doors.server.collected.mark("ct").is_done, 20)

    assert len(deaths) == 3  # twice with its series, once alone; then it rests
    tried = doors.server.collected.latest("ct", collected.TRIED, 10)
    assert poison["_id"] in {each.key for each in tried if each.due}


# ---- sources


def test_a_source_that_dies_in_the_middle_of_a_transfer_is_waited_for(doors: Doors, source: Polled, peer: Peer) -> None:
    source.store(*new_study(instances=4)[1], *new_study(instances=4)[1])
    task = collector(doors.server).look(peer)
    cut = _cut_after(source, 2)
    dead = threading.Event()

    def die(environment: dict[str, Any], start: Any) -> Any:
        if dead.is_set():
            return gone(environment, start)
        if is_series(environment):
            dead.set()
            return cut(environment, start)
        return None

    source.spoil = die
    said = run(doors, task)

    assert isinstance(said, Later)
    assert len(instances(doors)) == 2  # what came whole is kept
    source.spoil = lambda environment, start: None
    assert isinstance(run(doors, task), Done)
    assert instances(doors) == instances(source.doors)


def _cut_after(source: Polled, parts: int) -> Any:
    """Answer with the true body, broken off in the middle of the part after so many."""
    app = source.doors.flask.application

    def answer(environment: dict[str, Any], start: Any) -> Any:
        headers = {"Authorization": environment["HTTP_AUTHORIZATION"], "Accept": environment["HTTP_ACCEPT"]}
        whole = app.test_client().get(environment["PATH_INFO"], headers=headers)
        boundary = b"--" + whole.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        pieces = whole.data.split(boundary)
        body = boundary.join(pieces[: parts + 1]) + boundary + pieces[parts + 1][:5_000]
        length = {"Content-Length": str(len(whole.data))}
        return Response([body], 200, headers={**length, "Content-Type": whole.headers["Content-Type"]})(
            environment, start
        )

    return answer


def _endless_parts(environment: dict[str, Any], start: Any) -> Any:
    def body() -> Iterator[bytes]:
        while True:
            yield HEAD + b"no image\r\n"

    return Response(body(), 200, content_type=KIND)(environment, start)


def _endless_part(environment: dict[str, Any], start: Any) -> Any:
    def body() -> Iterator[bytes]:
        yield HEAD
        while True:
            yield bytes(1 << 20)

    return Response(body(), 200, content_type=KIND)(environment, start)


def _endless_preamble(environment: dict[str, Any], start: Any) -> Any:
    return Response((bytes(1 << 16) for _ in iter(int, 1)), 200, content_type=KIND)(environment, start)


def _trickle(environment: dict[str, Any], start: Any) -> Any:
    def body() -> Iterator[bytes]:
        while True:
            yield b"x"
            time.sleep(0.2)

    return Response(body(), 200, content_type=KIND)(environment, start)


def _says(status: int, body: bytes, kind: str) -> Any:
    return lambda environment, start: Response(body, status, content_type=kind)(environment, start)


NONSENSE = {
    "garbage": _says(200, os.urandom(10_000), KIND),
    "a web page": _says(200, b"<html>Log in</html>", "text/html"),
    "nothing": _says(200, b"", KIND),
    "no content": _says(204, b"", KIND),
    "no boundary": _says(200, HEAD + b"x\r\n--X--", 'multipart/related; type="application/dicom"'),
    "truncated": _says(200, HEAD + b"DICM", KIND),
    "not found": _says(404, b"", "text/plain"),
    "a fault": _says(500, b"", "text/plain"),
    "not acceptable": _says(406, b"", "text/plain"),
    "endless parts": _endless_parts,
    "an endless part": _endless_part,
    "an endless preamble": _endless_preamble,
    "a trickle": _trickle,
}


@pytest.mark.parametrize("kind", list(NONSENSE))
def test_a_source_that_answers_nonsense_ends_nothing_and_loses_nothing(db: Any, source: Polled, kind: str) -> None:
    with opened(
        db,
        outbound__private_networks=LOOPBACK,
        outbound__silence_s="1",
        collect__round_s="4",
        limits__instance_bytes="1 MiB",
    ) as doors:
        peer = peer_of(doors, "ct", source.address, authorization=source.authorization)
        source.store(*new_study(instances=2)[1], *new_study()[1])
        task = collector(doors.server).look(peer)
        nonsense = NONSENSE[kind]
        source.spoil = lambda environment, start: nonsense(environment, start) if is_transfer(environment) else None
        begun = time.monotonic()

        said = run(doors, task)

        assert time.monotonic() - begun < 30
        assert instances(doors) == set()
        source.spoil = lambda environment, start: None
        _collect_rest(doors, peer, said, task)
        # What the source called an image and was none is refused for good; all else comes when it is well again.
        refused = {each.key for each in doors.server.collected.latest("ct", collected.REFUSED, 10)}
        assert instances(doors) | refused == instances(source.doors)
        assert refused == set() or kind in ("endless parts", "an endless part")


def _collect_rest(doors: Doors, peer: Peer, said: Done | Later, task: str) -> None:
    for _ in range(6):
        doors.clock.forward(days=1)
        if isinstance(said, Later) or task:
            said = run(doors, task) if task else said
        task = collector(doors.server).look(peer)


@pytest.mark.parametrize("kind", ["garbage", "a web page", "a fault", "endless", "repeating", "other JSON", "huge"])
def test_a_search_that_is_answered_with_nonsense_fails_the_look_and_moves_no_mark(
    doors: Doors, source: Polled, peer: Peer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.work.collection.dicomweb.MOST_STUDIES", 1_000)
    source.spoil = SEARCHES[kind]

    with pytest.raises(AppError):
        collector(doors.server).look(peer)

    mark = doors.server.collected.mark("ct")
    assert (mark.latest, mark.failures) == ("", 1)


def _study(uid: str) -> str:
    return f'{{"0020000D":{{"vr":"UI","Value":["{uid}"]}},"00080020":{{"vr":"DA","Value":["20260101"]}}}}'


def _endless_studies(environment: dict[str, Any], start: Any) -> Any:
    offset = int(environment["QUERY_STRING"].rpartition("offset=")[2])
    studies = ",".join(_study(f"1.2.{number}") for number in range(offset, offset + 500))
    return _says(200, f"[{studies}]".encode(), "application/dicom+json")(environment, start)


def _repeating(environment: dict[str, Any], start: Any) -> Any:
    studies = ",".join(_study(f"1.2.{number}") for number in range(500))
    return _says(200, f"[{studies}]".encode(), "application/dicom+json")(environment, start)


def _huge(environment: dict[str, Any], start: Any) -> Any:
    return Response((b" " * (1 << 20) for _ in iter(int, 1)), 200, content_type="application/dicom+json")(
        environment, start
    )


SEARCHES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "garbage": _says(200, os.urandom(1_000), "application/dicom+json"),
    "a web page": _says(200, b"<html>Log in</html>", "text/html"),
    "a fault": _says(500, b"", "text/plain"),
    "endless": _endless_studies,
    "repeating": _repeating,
    "other JSON": _says(200, b'{"error": "no"}', "application/dicom+json"),
    "huge": _huge,
}
