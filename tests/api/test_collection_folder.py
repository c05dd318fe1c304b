"""Collection from a watched folder."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fhir_server.background import collector
from fhir_server.model.peer import Peer, Way
from fhir_server.store import collected
from fhir_server.work.collection import Budget
from fhir_server.work.collection.opening import admitted, source_of
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import collect
from imaging.errors import AppError, Category
from tests.support.doors import Doors, dicom, new_study, opened
from tests.support.sources import peer_of


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


@pytest.fixture
def peer(doors: Doors, inbox: Path) -> Peer:
    return watched(doors, inbox)


def watched(doors: Doors, inbox: Path, **schedule: Any) -> Peer:
    return peer_of(doors, "inbox", str(inbox), Way.FOLDER, **{"quiet_s": 0.0, "every_s": 10.0, **schedule})


def run(doors: Doors, peer: Peer) -> Done | Later | None:
    doors.clock.now = datetime.now(UTC)  # quietness is about the clock of the file system
    task = collector(doors.server).look(peer)
    return collect.run(doors.server.own.read("Task", task).json(), doors.server, lambda _: None) if task else None


def collect_now(doors: Doors, peer: Peer) -> dict[str, int]:
    done = run(doors, peer)
    if done is None:
        return {}
    assert isinstance(done, Done), done
    return {
        each["type"]["coding"][0]["code"]: each["valueUnsignedInt"]
        for each in done.outputs
        if "valueUnsignedInt" in each
    }


def files_in(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir())


def test_files_in_all_subfolders_are_stored_and_moved_to_done(doors: Doors, peer: Peer, inbox: Path) -> None:
    study_uid, files = new_study(instances=3)
    (inbox / "a" / "b").mkdir(parents=True)
    for path, file in zip((inbox / "1.dcm", inbox / "a" / "2", inbox / "a" / "b" / "IM-3.ima"), files, strict=True):
        path.write_bytes(file)

    found = collect_now(doors, peer)

    assert found == {"stored": 3, "here": 0, "refused": 0, "failed": 0}
    assert files_in(inbox) == ["done/1.dcm", "done/a/2", "done/a/b/IM-3.ima"]
    assert collect_now(doors, peer) == {}
    assert {each.registered_by for each in doors.server.archive.instances(study_uid)} == {peer.subscriber}


def test_a_file_that_cannot_be_stored_is_moved_to_refused_with_the_reason(
    doors: Doors, peer: Peer, inbox: Path
) -> None:
    (inbox / "notes.pdf").write_bytes(b"%PDF-1.7 and so on")
    (inbox / "cut.dcm").write_bytes(new_study()[1][0][:2_000])
    (inbox / "good.dcm").write_bytes(new_study()[1][0])

    found = collect_now(doors, peer)

    assert (found["stored"], found["refused"]) == (1, 2)
    assert files_in(inbox) == [
        "done/good.dcm", "refused/cut.dcm", "refused/cut.dcm.txt", "refused/notes.pdf", "refused/notes.pdf.txt",
    ]  # fmt: skip
    assert "DICOM" in (inbox / "refused" / "notes.pdf.txt").read_text()


def test_what_is_still_being_written_is_left_alone(doors: Doors, inbox: Path) -> None:
    peer = watched(doors, inbox, quiet_s=1.0)
    _, files = new_study(instances=2)
    (inbox / "old.dcm").write_bytes(files[0])
    time.sleep(1.1)
    (inbox / "new.dcm").write_bytes(files[1])
    # A copy that keeps the time of the original looks old: what counts is when the file last changed here.
    os.utime(inbox / "new.dcm", (0, 0))

    assert collect_now(doors, peer)["stored"] == 1
    assert files_in(inbox) == ["done/old.dcm", "new.dcm"]
    time.sleep(1.1)
    assert collect_now(doors, peer)["stored"] == 1


@pytest.mark.parametrize(
    "name", [".hidden", ".image.dcm.Xa3b", "image.dcm.part", "image.dcm.FILEPART", "x.tmp", "DICOMDIR"]
)
def test_names_that_say_unfinished_or_no_image_are_passed_over(
    doors: Doors, peer: Peer, inbox: Path, name: str
) -> None:
    (inbox / name).write_bytes(new_study()[1][0])

    assert collect_now(doors, peer) == {}
    assert files_in(inbox) == [name]


def test_links_lead_nowhere_and_what_is_no_file_is_passed_over(
    doors: Doors, peer: Peer, inbox: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.dcm").write_bytes(new_study()[1][0])
    (inbox / "folder").symlink_to(outside, target_is_directory=True)
    (inbox / "file.dcm").symlink_to(outside / "secret.dcm")
    (inbox / "loop").symlink_to(inbox, target_is_directory=True)
    os.mkfifo(inbox / "pipe")

    assert collect_now(doors, peer) == {}
    assert (outside / "secret.dcm").exists()
    assert doors.server.archive.count() == 0


def test_a_folder_that_is_exchanged_for_a_link_meanwhile_leads_nowhere(
    doors: Doors, peer: Peer, inbox: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.dcm").write_bytes(new_study()[1][0])
    (inbox / "sub").mkdir()
    (inbox / "sub" / "1.dcm").write_bytes(new_study()[1][0])
    doors.clock.now = datetime.now(UTC)

    with source_of(doors.server, peer) as source:
        items = list(source.items())
        (inbox / "sub").rename(inbox / ".away")
        (inbox / "sub").symlink_to(outside, target_is_directory=True)
        expected = [each for item in items for each in source.expected(item)]

    assert len(items) == 1
    assert expected == []
    assert files_in(outside) == ["1.dcm"]


def test_done_that_is_a_link_is_not_written_through(doors: Doors, peer: Peer, inbox: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (inbox / "done").symlink_to(outside, target_is_directory=True)
    (inbox / "1.dcm").write_bytes(new_study()[1][0])

    said = run(doors, peer)

    assert isinstance(said, Later)
    assert files_in(outside) == []
    assert doors.server.archive.count() == 1
    assert run(doors, peer) is None or collect_now(doors, peer) == {}  # noted: it is not taken for ever


def test_a_folder_that_keeps_its_files_takes_each_once_and_again_when_it_changes(doors: Doors, inbox: Path) -> None:
    peer = watched(doors, inbox, keeps=True)
    (inbox / "done").mkdir()  # theirs
    (inbox / "done" / "1.dcm").write_bytes(new_study()[1][0])
    (inbox / "bad").write_bytes(b"no image")

    found = collect_now(doors, peer)

    assert (found["stored"], found["refused"]) == (1, 1)
    assert files_in(inbox) == ["bad", "done/1.dcm"]
    assert collect_now(doors, peer) == {}
    (inbox / "bad").write_bytes(new_study()[1][0])
    assert collect_now(doors, peer)["stored"] == 1
    assert [each.key for each in doors.server.collected.latest("inbox", collected.REFUSED, 5)] == ["bad"]


def test_a_second_file_of_the_name_gets_a_number(doors: Doors, peer: Peer, inbox: Path) -> None:
    for _ in range(2):
        (inbox / "1.dcm").write_bytes(new_study()[1][0])
        assert collect_now(doors, peer)["stored"] == 1

    assert files_in(inbox) == ["done/1.dcm", "done/1.dcm.1"]


def test_a_file_that_was_stored_before_a_crash_is_moved_by_the_next_round(
    doors: Doors, peer: Peer, inbox: Path
) -> None:
    file = new_study()[1][0]
    (inbox / "1.dcm").write_bytes(file)
    doors.ingest(file, name="collected-for")

    assert collect_now(doors, peer)["here"] == 1
    assert files_in(inbox) == ["done/1.dcm"]


def test_names_that_are_no_utf_8_are_names(doors: Doors, peer: Peer, inbox: Path) -> None:
    path = os.fsencode(inbox) + b"/M\xfcller"
    Path(os.fsdecode(path)).write_bytes(new_study()[1][0])

    assert collect_now(doors, peer)["stored"] == 1
    assert [os.fsencode(each.name) for each in (inbox / "done").iterdir()] == [b"M\xfcller"]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """Be somebody who may not read everything, with a folder that everybody may write to."""
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        Path(directory).chmod(0o777)
        was = os.geteuid()
        try:
            if was == 0:
                os.seteuid(65_534)
            inbox = Path(directory) / "inbox"
            inbox.mkdir()
            yield inbox
            inbox.chmod(0o700)
        finally:
            os.seteuid(was)


def test_a_file_that_may_not_be_read_waits_and_keeps_none_waiting(doors: Doors, as_nobody: Path) -> None:
    peer = watched(doors, as_nobody)
    (as_nobody / "closed.dcm").write_bytes(new_study()[1][0])
    (as_nobody / "closed.dcm").chmod(0)
    (as_nobody / "open.dcm").write_bytes(new_study()[1][0])

    found = collect_now(doors, peer)

    assert (found["stored"], found["failed"]) == (1, 1)
    assert collect_now(doors, peer) == {}
    (as_nobody / "closed.dcm").chmod(0o600)
    doors.clock.forward(hours=2)
    assert collector(doors.server).look(peer)


def test_a_folder_from_which_files_cannot_be_moved_is_refused_before_anything_is_read(
    doors: Doors, as_nobody: Path
) -> None:
    peer = watched(doors, as_nobody)
    as_nobody.chmod(0o555)

    with pytest.raises(AppError, match="cannot be moved") as refused:
        collector(doors.server).look(peer)

    assert refused.value.category is Category.FORBIDDEN


def test_a_folder_that_is_not_there_is_said_and_left_alone_for_a_while(doors: Doors, inbox: Path) -> None:
    peer = watched(doors, inbox / "nowhere")

    with pytest.raises(AppError) as refused:
        collector(doors.server).look(peer)

    assert refused.value.category is Category.BUSY
    mark = doors.server.collected.mark("inbox")
    assert (mark.failures, (mark.due - doors.clock.now).total_seconds() > 10) == (1, True)


def test_a_large_file_waits_on_disk_and_not_in_memory(db: Any, inbox: Path) -> None:
    with opened(db, limits__instance_bytes="64 MiB") as doors:
        peer = watched(doors, inbox)
        with (inbox / "huge").open("wb") as file:
            file.truncate(1 << 34)  # 16 GiB, sparse
        (inbox / "1.dcm").write_bytes(dicom())

        found = collect_now(doors, peer)

    assert (found["stored"], found["refused"]) == (1, 1)
    assert "limit" in (inbox / "refused" / "huge.txt").read_text()


def test_more_files_than_one_round_takes_come_with_the_next(db: Any, inbox: Path) -> None:
    with opened(db, collect__round_instances="60") as doors:
        peer = watched(doors, inbox)
        _, files = new_study(instances=70)
        for number, file in enumerate(files):
            (inbox / f"{number}.dcm").write_bytes(file)

        assert [collect_now(doors, peer)["stored"] for _ in range(2)] == [60, 10]
        assert len(files_in(inbox / "done")) == 70


def test_a_file_of_which_the_process_dies_is_met_once_more_and_keeps_none_waiting(
    doors: Doors, peer: Peer, inbox: Path
) -> None:
    _, files = new_study(instances=3)
    for number, file in enumerate(files):
        (inbox / f"{number}.dcm").write_bytes(file)
    doors.clock.now = datetime.now(UTC)
    stored: list[bytes] = []

    def dies_of_the_second(bodies: Iterable[Any], study_uid: str | None) -> Iterator[Any]:
        for body in bodies:
            if bytes(body) == files[1]:
                raise MemoryError  # as good as a death: nothing after it is done
            stored.append(bytes(body))
            yield from doors.server.studies.ingest([body], admitted(doors.server, peer))

    for _ in range(2):
        with source_of(doors.server, peer, is_careful=True) as source, suppress(MemoryError):
            for item in list(source.items()):
                source.take(item, dies_of_the_second, Budget(100, 1 << 30, time.monotonic() + 60), lambda _: None)

    assert sorted(stored) == sorted([files[0], files[2]])
    assert files_in(inbox) == ["1.dcm", "done/0.dcm", "done/2.dcm"]
    doors.clock.forward(minutes=6)
    assert collector(doors.server).look(peer)
