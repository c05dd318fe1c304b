"""`fhir-imaging serve` and the commands beside it, run as processes."""

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.support.serving import answer, children, fhir_imaging, is_alive, serving, wait_for


@pytest.fixture
def store():
    # Deleted at once: pytest would keep the directories of three runs, with 300 MB of journal in each.
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        yield Path(directory) / "store"


@pytest.fixture(scope="module")
def server():
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store", "--set", "access.cache_s=0") as served,
    ):
        yield served


@pytest.fixture(scope="module")
def token(server):
    fhir_imaging("subscriber", "add", "r", "--register-images", "--receive-images", "--data-dir", server.data_dir)
    return fhir_imaging("token", "r", "--data-dir", server.data_dir).stdout.strip()


def store_request(host: str, token: str) -> tuple[bytes, bytes]:
    """A STOW-RS request for one small CT image in two halves."""
    image = BytesIO()
    pydicom.dcmread(get_testdata_file("CT_small.dcm")).save_as(image)
    body = b"--X\r\nContent-Type: application/dicom\r\n\r\n" + image.getvalue() + b"\r\n--X--\r\n"
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=X\r\n'
        f"Accept: application/dicom+json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body[:1000], body[1000:]


def test_the_ready_message_names_addresses_that_answer(server):
    assert f"{server.base_url}/fhir" in server.message
    assert f"{server.base_url}/dicom-web" in server.message
    assert f" {server.base_url}/\n" in server.message
    assert answer(f"{server.base_url}/") == 200
    assert answer(f"{server.base_url}/health/live") == 200
    assert answer(f"{server.base_url}/health/ready") == 200


def test_token_prints_a_token_alone_that_opens_the_doors(server, token):
    assert len(token.split()) == 1
    assert answer(f"{server.base_url}/fhir/ImagingStudy") == 401
    assert answer(f"{server.base_url}/fhir/ImagingStudy", token) == 200
    assert answer(f"{server.base_url}/dicom-web/studies", token) in (200, 204)


def test_a_suspended_subscriber_is_shut_out_and_listed_as_such(server):
    here = ("--data-dir", server.data_dir)
    fhir_imaging("subscriber", "add", "guest", "--receive-images", "--until", "2999-12-31", *here)
    minted = fhir_imaging("token", "guest", *here).stdout.strip()
    assert answer(f"{server.base_url}/fhir/ImagingStudy", minted) == 200

    assert fhir_imaging("subscriber", "suspend", "guest", *here).returncode == 0

    assert answer(f"{server.base_url}/fhir/ImagingStudy", minted) == 401
    lines = fhir_imaging("subscriber", "list", *here).stdout.splitlines()
    assert any(line.startswith("guest") and "suspended" in line for line in lines)


def test_a_second_server_on_the_directory_or_the_port_is_refused_in_one_line(server):
    port = urlsplit(server.base_url).port

    same_directory = fhir_imaging("serve", "--port", 0, "--data-dir", server.data_dir)
    same_port = fhir_imaging("serve", "--port", port, "--data-dir", server.data_dir.parent / "other")

    assert same_directory.returncode == same_port.returncode == 1
    assert f"process {server.process.pid} already serves" in same_directory.stderr
    assert "already in use" in same_port.stderr
    assert [run.stderr.count("\n") for run in (same_directory, same_port)] == [1, 1]


@pytest.mark.parametrize("part", ["web", "worker", "mongod"])
def test_a_part_that_is_killed_is_started_again(server, token, part):
    before = server.pid_of(part)
    os.kill(before, signal.SIGKILL)

    assert wait_for(lambda: server.pid_of(part) not in (0, before))
    assert wait_for(lambda: answer(f"{server.base_url}/fhir/ImagingStudy", token) == 200)


def test_every_log_line_is_json_and_none_holds_a_token(server, token):
    answer(f"{server.base_url}/fhir/Patient?name=DOE", token)

    text = server.log.read_text()
    entries = [json.loads(line) for line in text.splitlines()]

    assert {entry["process"] for entry in entries} >= {"serve", "web", "worker"}
    assert token not in text
    assert "DOE" not in text


def test_sigterm_lets_a_running_request_end_then_stops_everything(store):
    with serving(store) as served:
        fhir_imaging("subscriber", "add", "r", "--register-images", "--data-dir", store)
        minted = fhir_imaging("token", "r", "--data-dir", store).stdout.strip()
        address = urlsplit(served.base_url)
        parts = list(children(served.process.pid))
        first, second = store_request(address.netloc, minted)

        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(first)
            wait_for(lambda: False, 0.3)
            served.process.send_signal(signal.SIGTERM)
            wait_for(lambda: False, 0.3)
            connection.sendall(second)
            status_line = connection.makefile("rb").readline()

        assert b" 200 " in status_line
        assert served.process.wait(30) == 0
        assert not [pid for pid in parts if is_alive(pid)]
        assert not (store / "connection.json").exists()


def test_kill_9_of_the_supervisor_leaves_nothing_that_hinders_the_next_one(store):
    with serving(store) as first:
        parts = list(children(first.process.pid))
        first.process.kill()
        first.process.wait()

        with serving(store) as second:
            assert answer(f"{second.base_url}/health/ready") == 200
            assert wait_for(lambda: not [pid for pid in parts if is_alive(pid)])


def test_commands_work_without_a_server(store):
    added = fhir_imaging("subscriber", "add", "ct-1", "--register-images", "--data-dir", store)
    minted = fhir_imaging("token", "ct-1", "--data-dir", store)
    unknown = fhir_imaging("token", "nobody", "--data-dir", store)

    assert (added.returncode, minted.returncode, unknown.returncode) == (0, 0, 1)
    assert len(minted.stdout.split()) == 1
    assert minted.stderr == ""
    assert unknown.stderr.count("\n") == 1
    assert unknown.stdout == ""


def test_web_and_worker_say_that_they_need_an_engine(store):
    for part in ("web", "worker"):
        refused = fhir_imaging(part, "--data-dir", store)

        assert refused.returncode == 1
        assert "MONGODB_URI" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config", "--set", "web.prt=1"], "did you mean web.port?"),
        (["config", "--set", "web.port"], "NAME=VALUE"),
        (["subscriber", "add", "x"], "--register-images"),
        (["token"], "NAME"),
        (["serve", "--port", "99999"], "--port"),
    ],
)
def test_a_command_that_is_asked_wrongly_says_so_and_ends_with_2(arguments, said):
    run = fhir_imaging(*arguments)

    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_help_teaches_with_examples():
    for command in ([], ["serve"], ["subscriber"], ["token"], ["demo"]):
        assert "fhir-imaging " in fhir_imaging(*command, "--help").stdout


def test_an_idle_server_does_next_to_nothing(server):
    assert wait_for(lambda: answer(f"{server.base_url}/health/ready") == 200)
    time.sleep(5)  # what a start leaves to do

    before, began = cpu_s(server.process.pid), time.monotonic()
    time.sleep(10)
    used = (cpu_s(server.process.pid) - before) / (time.monotonic() - began)

    # 1.2 % were measured on a quiet machine, half of them the database's own.
    assert used < 0.08


def cpu_s(pid: int) -> float:
    """CPU time of a process and of all those that it started.   Source: proc(5), utime and stime."""
    used = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return used / os.sysconf("SC_CLK_TCK") + sum(cpu_s(child) for child in children(pid))


def test_a_copy_of_a_stopped_data_directory_is_a_whole_server(store):
    with serving(store) as served:
        fhir_imaging("subscriber", "add", "r", "--register-images", "--receive-images", "--data-dir", store)
        token = fhir_imaging("token", "r", "--data-dir", store).stdout.strip()
        where = urlsplit(served.base_url)
        with socket.create_connection((where.hostname, where.port)) as connection:
            connection.sendall(b"".join(store_request(where.netloc, token)))
            assert b" 200 " in connection.recv(100)
    copy = store.with_name("copy")
    shutil.copytree(store, copy)
    shutil.rmtree(store)

    verified = fhir_imaging("verify", "--data-dir", copy)

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "0 findings\n")
    study = pydicom.dcmread(get_testdata_file("CT_small.dcm")).StudyInstanceUID
    with serving(copy) as served:
        assert answer(f"{served.base_url}/dicom-web/studies/{study}", token) == 200
        assert answer(f"{served.base_url}/fhir/ImagingStudy/{study}", token) == 200


def test_a_command_that_finds_no_database_says_so_and_speaks_of_no_bug(store):
    with serving(store) as served:
        os.kill(served.process.pid, signal.SIGSTOP)  # so that it starts no other one
        try:
            os.kill(served.pid_of("mongod"), signal.SIGKILL)
            listed = fhir_imaging("subscriber", "list", "--data-dir", store)
        finally:
            os.kill(served.process.pid, signal.SIGCONT)

    assert (listed.returncode, listed.stdout) == (1, "")
    assert listed.stderr.startswith("fhir-imaging: ")
    assert "bug" not in listed.stderr
    assert len(listed.stderr.splitlines()) == 1
