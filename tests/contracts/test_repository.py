"""The repository's contract, on a real database: versions, restriction, hooks, history, concurrency."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.model import json
from fhir_server.model.criteria import clause
from fhir_server.model.query import parse
from fhir_server.store.filters import ALLOW, UNRESTRICTED, Restriction, Rule
from fhir_server.store.repository import Hooks, Repository
from fhir_server.store.schema import ensure_schema
from imaging.errors import AppError, Category

Json = dict[str, Any]


class Clock:
    """A clock that goes one second with each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def open_repository(db: Database[Json]) -> Callable[..., Repository]:
    ensure_schema(db)
    clock = Clock()
    return lambda restriction=UNRESTRICTED, **options: Repository(db, restriction, clock=clock, **options)


@pytest.fixture
def repo(open_repository: Callable[..., Repository]) -> Repository:
    return open_repository()


def _patient(**changes: Any) -> Json:
    return {"resourceType": "Patient", **changes}


def _study(subject: str = "Patient/1", **changes: Any) -> Json:
    return {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": subject}, **changes}


def _refusal(act: Callable[..., Any], *arguments: Any, **options: Any) -> Category:
    with pytest.raises(AppError) as raised:
        act(*arguments, **options)
    return raised.value.category


def test_a_created_resource_is_read_back_with_the_servers_id_and_meta(repo: Repository) -> None:
    made = repo.create(_patient(id="mine", meta={"versionId": "7", "tag": [{"code": "t"}]}, active=True))

    found = repo.read("Patient", made.id)
    meta = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:01.000Z", "tag": [{"code": "t"}]}
    assert found.json() == {"resourceType": "Patient", "id": made.id, "meta": meta, "active": True}
    assert found.body == made.body
    assert (made.id != "mine", found.etag, found.version) == (True, 'W/"1"', 1)


def test_what_is_not_there_is_not_found(repo: Repository) -> None:
    assert _refusal(repo.read, "Patient", "none") is Category.NOT_FOUND
    assert _refusal(repo.vread, "Patient", "none", 1) is Category.NOT_FOUND
    assert _refusal(repo.history, "Patient", "none") is Category.NOT_FOUND
    assert _refusal(repo.delete, "Patient", "none") is Category.NOT_FOUND
    assert _refusal(repo.update, _patient(id="none")) is Category.UNSUPPORTED


@pytest.mark.parametrize("identifier", ["", "a/b", "a" * 65, "ä", "$where", "a b"])
def test_an_impossible_id_is_invalid(repo: Repository, identifier: str) -> None:
    assert _refusal(repo.read, "Patient", identifier) is Category.INVALID


def test_a_type_without_a_row_is_not_found(repo: Repository) -> None:
    assert _refusal(repo.create, {"resourceType": "Nonsense"}) is Category.NOT_FOUND
    assert _refusal(repo.read, "Nonsense", "1") is Category.NOT_FOUND


def test_an_update_makes_a_version_and_keeps_the_last(repo: Repository) -> None:
    made = repo.create(_patient(active=True))

    changed = repo.update({**made.json(), "active": False})

    assert (changed.version, repo.read("Patient", made.id).body) == (2, changed.body)
    assert repo.vread("Patient", made.id, 1).body == made.body
    assert repo.vread("Patient", made.id, 2).body == changed.body
    assert _refusal(repo.vread, "Patient", made.id, 3) is Category.NOT_FOUND


def test_an_update_of_another_version_than_the_current_fails(repo: Repository) -> None:
    made = repo.create(_patient())
    repo.update(made.json(), if_match=1)

    assert _refusal(repo.update, made.json(), if_match=1) is Category.PRECONDITION
    assert _refusal(repo.delete, "Patient", made.id, if_match=1) is Category.PRECONDITION
    assert _refusal(repo.update, _patient(id="none"), if_match=1, create=True) is Category.PRECONDITION


def test_an_unchanged_update_makes_no_version_when_asked(repo: Repository) -> None:
    made = repo.create(_patient(active=True))

    assert repo.update(_patient(id=made.id, active=True), if_changed=True).version == 1
    assert repo.update(_patient(id=made.id, active=False), if_changed=True).version == 2


def test_a_deleted_resource_is_gone_but_its_history_stays(repo: Repository) -> None:
    made = repo.create(_patient())

    tombstone = repo.delete("Patient", made.id)

    assert (tombstone.version, tombstone.deleted, tombstone.body) == (2, True, b"")
    assert _refusal(repo.read, "Patient", made.id) is Category.GONE
    assert _refusal(repo.vread, "Patient", made.id, 2) is Category.GONE
    assert repo.vread("Patient", made.id, 1).body == made.body
    assert [(one.version, one.method) for one in repo.history("Patient", made.id)] == [(2, "DELETE"), (1, "POST")]
    assert repo.search(parse("Patient", [("_id", made.id)])).matches == []


def test_deleting_twice_is_deleting_once(repo: Repository) -> None:
    made = repo.create(_patient())

    assert repo.delete("Patient", made.id).version == repo.delete("Patient", made.id).version == 2


def test_a_deleted_resource_comes_back_by_update_only_where_ids_may_be_chosen(repo: Repository) -> None:
    made = repo.create(_patient())
    repo.delete("Patient", made.id)

    assert _refusal(repo.update, _patient(id=made.id)) is Category.UNSUPPORTED
    assert repo.update(_patient(id=made.id), create=True).version == 3
    assert [one.method for one in repo.history("Patient", made.id)] == ["PUT", "DELETE", "POST"]


def test_a_resource_exists_once_under_its_id(repo: Repository) -> None:
    repo.create(_patient(), id="p")

    assert _refusal(repo.create, _patient(), id="p") is Category.CONFLICT


def test_history_is_told_in_pages(repo: Repository) -> None:
    made = repo.create(_patient())
    for _ in range(4):
        repo.update(made.json())

    first = repo.history("Patient", made.id, count=2)
    second = repo.history("Patient", made.id, count=2, before=first[-1].version)

    assert [one.version for one in first + second] == [5, 4, 3, 2]


def test_time_goes_on_in_a_history_whatever_a_clock_says(repo: Repository, db: Database[Json]) -> None:
    made = repo.create(_patient())
    late = Repository(db, UNRESTRICTED, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC))

    updated = late.update(made.json())

    assert updated.last_updated > made.last_updated
    assert (made.is_first, updated.is_first) == (True, False)


def test_decimals_keep_their_digits(repo: Repository) -> None:
    body = b'{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":1.50}}'

    made = repo.create(json.loads(body))

    assert b'"value":1.50}' in repo.read("Observation", made.id).body
    assert b'"value":1.50}' in repo.update(made.json()).body


def test_a_study_of_ten_thousand_instances_is_kept_compressed(repo: Repository, db: Database[Json]) -> None:
    instances = [{"uid": f"1.2.3.{number}", "sopClass": {"code": "urn:oid:1.2"}} for number in range(10_000)]

    made = repo.create(_study(series=[{"uid": "1.2.3", "modality": {"code": "CT"}, "instance": instances}]))

    document = db["resources"].find_one({"_id": made.key}, {"body": 1})
    assert document is not None
    assert len(document["body"]) < len(made.body) / 4
    assert repo.read("ImagingStudy", made.id).body == made.body
    assert repo.find_one("ImagingStudy", "instance", "1.2.3.9999") == made


def test_a_resource_that_the_database_cannot_keep_is_too_large(repo: Repository) -> None:
    names = [{"text": f"{number}" + "x" * 500} for number in range(20_000)]

    assert _refusal(repo.create, _patient(name=names)) is Category.TOO_LARGE


def test_each_write_is_marked_for_those_who_pass_changes_on(repo: Repository, db: Database[Json]) -> None:
    made = repo.create(_patient())
    repo.update(made.json())
    repo.delete("Patient", made.id)

    unseen = db["history"].find({"unseen": {"$exists": True}}).sort("unseen.number")
    rows = [(row["_id"], row["method"], row["unseen"]["at"] == row["lastUpdated"]) for row in unseen]
    assert rows == [(f"{made.key}/{n}", method, True) for n, method in enumerate(("POST", "PUT", "DELETE"), 1)]


def test_a_write_that_fails_leaves_nothing(repo: Repository, db: Database[Json]) -> None:
    db["history"].insert_one({"_id": "Patient/p/1"})

    assert _refusal(repo.create, _patient(), id="p") is Category.CONFLICT
    assert db["resources"].count_documents({}) == 0
    assert [row["_id"] for row in db["history"].find()] == ["Patient/p/1"]


def test_concurrent_updates_all_count(repo: Repository) -> None:
    made = repo.create(_patient())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: repo.update(made.json()), range(12)))

    assert [one.version for one in repo.history("Patient", made.id)] == list(range(13, 0, -1))


def test_of_concurrent_conditional_updates_one_wins(repo: Repository) -> None:
    made = repo.create(_patient())
    start = threading.Barrier(4)

    def update(_: int) -> str:
        start.wait()
        try:
            return repo.update(made.json(), if_match=1).etag
        except AppError as error:
            return error.category.value

    with ThreadPoolExecutor(4) as pool:
        results = sorted(pool.map(update, range(4)))

    assert results == ['W/"2"', *["precondition"] * 3]


def test_of_concurrent_creations_under_one_id_one_wins(repo: Repository) -> None:
    def create(_: int) -> str:
        try:
            return repo.create(_patient(), id="p").etag
        except AppError as error:
            return error.category.value

    with ThreadPoolExecutor(4) as pool:
        results = sorted(pool.map(create, range(4)))

    assert results == ['W/"1"', *["conflict"] * 3]


def test_an_audit_event_is_appended_and_never_changed(repo: Repository, db: Database[Json]) -> None:
    made = repo.append({"resourceType": "AuditEvent", "recorded": "2026-01-01T00:00:00Z"})

    assert repo.read("AuditEvent", made.id).body == made.body
    assert repo.vread("AuditEvent", made.id, 1).body == made.body
    assert repo.search(parse("AuditEvent", [("date", "2026-01-01")])).total == 1
    assert db["history"].count_documents({}) == 0
    assert _refusal(repo.update, made.json()) is Category.UNSUPPORTED
    assert _refusal(repo.delete, "AuditEvent", made.id) is Category.UNSUPPORTED
    assert _refusal(repo.append, _patient()) is Category.INVALID


class TestHooks:
    def test_an_id_may_follow_from_the_content(self, open_repository: Callable[..., Repository]) -> None:
        hooks = {"Patient": Hooks(lambda resource: {**resource, "active": True}, identify=lambda _: "derived")}
        repo = open_repository(hooks=hooks)

        assert repo.create(_patient()).json()["id"] == "derived"
        assert repo.read("Patient", "derived").json()["active"] is True
        assert _refusal(repo.create, _patient()) is Category.CONFLICT
        assert _refusal(repo.create, _patient(), id="other") is Category.INVALID
        assert _refusal(repo.update, _patient(id="other"), create=True) is Category.INVALID

    def test_a_hook_sees_old_new_and_who_writes(self, open_repository: Callable[..., Repository]) -> None:
        seen: list[tuple[str, str, bool]] = []

        def before_update(old: Json, new: Json, internal: bool) -> Json:
            seen.append((old["gender"], new["gender"], internal))
            return {**new, "gender": "other"}

        hooks = {"Patient": Hooks(before_update=before_update)}
        made = open_repository(hooks=hooks).create(_patient(gender="male"))

        open_repository(hooks=hooks).update({**made.json(), "gender": "female"})
        changed = open_repository(hooks=hooks, internal=True).update({**made.json(), "gender": "unknown"})

        assert seen == [("male", "female", False), ("other", "unknown", True)]
        assert changed.json()["gender"] == "other"

    def test_a_hook_may_refuse_and_nothing_is_written(self, open_repository: Callable[..., Repository]) -> None:
        def refuse(*arguments: Any) -> Any:
            raise AppError(Category.FORBIDDEN, "no")

        repo = open_repository(hooks={"Patient": Hooks(before_update=refuse, before_delete=refuse)})
        made = repo.create(_patient())

        assert _refusal(repo.update, made.json()) is Category.FORBIDDEN
        assert _refusal(repo.delete, "Patient", made.id) is Category.FORBIDDEN
        assert repo.read("Patient", made.id).version == 1


class TestRestriction:
    @pytest.fixture
    def narrow(self, repo: Repository) -> Repository:
        """Opened for one who may do everything with ImagingStudy of Patient/1, and nothing else."""
        mine = (clause("ImagingStudy", "patient", "Patient/1"),)
        return repo.opened_for(Restriction({"ImagingStudy": Rule(mine, mine, mine, mine)}))

    def test_what_lies_outside_is_not_found(self, repo: Repository, narrow: Repository) -> None:
        mine, other = repo.create(_study("Patient/1")), repo.create(_study("Patient/2"))

        assert narrow.read("ImagingStudy", mine.id).body == mine.body
        assert _refusal(narrow.read, "ImagingStudy", other.id) is Category.NOT_FOUND
        assert _refusal(narrow.vread, "ImagingStudy", other.id, 1) is Category.NOT_FOUND
        assert _refusal(narrow.history, "ImagingStudy", other.id) is Category.NOT_FOUND
        assert _refusal(narrow.update, other.json()) is Category.NOT_FOUND
        assert _refusal(narrow.update, {**other.json(), "id": "none"}) is Category.NOT_FOUND
        assert _refusal(narrow.delete, "ImagingStudy", other.id) is Category.NOT_FOUND

    def test_a_search_finds_only_what_lies_inside(self, repo: Repository, narrow: Repository) -> None:
        mine = repo.create(_study("Patient/1"))
        repo.create(_study("Patient/2"))

        for params in ([], [("patient", "Patient/1,Patient/2")], [("_total", "accurate")], [("patient:not", "x")][:0]):
            page = narrow.search(parse("ImagingStudy", params))
            assert ([one.id for one in page.matches], page.total) == ([mine.id], 1)
        assert narrow.search(parse("ImagingStudy", [("patient", "Patient/2")])).total == 0
        assert narrow.search(parse("ImagingStudy", [("_summary", "count")])).total == 1

    def test_a_denied_type_is_forbidden(self, repo: Repository, narrow: Repository) -> None:
        made = repo.create(_patient())

        assert _refusal(narrow.read, "Patient", made.id) is Category.FORBIDDEN
        assert _refusal(narrow.search, parse("Patient", [])) is Category.FORBIDDEN
        assert _refusal(narrow.create, _patient()) is Category.FORBIDDEN
        assert _refusal(narrow.update, made.json()) is Category.FORBIDDEN
        assert _refusal(narrow.delete, "Patient", made.id) is Category.FORBIDDEN
        assert _refusal(narrow.append, {"resourceType": "AuditEvent"}) is Category.FORBIDDEN

    def test_a_write_may_not_leave_what_may_be_written(self, repo: Repository, narrow: Repository) -> None:
        made = narrow.create(_study("Patient/1"))

        assert _refusal(narrow.create, _study("Patient/2")) is Category.FORBIDDEN
        moved = {**made.json(), "subject": {"reference": "Patient/2"}}
        assert _refusal(narrow.update, moved) is Category.FORBIDDEN
        assert repo.read("ImagingStudy", made.id).version == 1
        assert repo.search(parse("ImagingStudy", [])).total == 1

    def test_versions_are_judged_by_their_own_content(self, repo: Repository, narrow: Repository) -> None:
        made = repo.create(_study("Patient/2"))
        repo.update({**made.json(), "subject": {"reference": "Patient/1"}})

        assert narrow.read("ImagingStudy", made.id).version == 2
        assert [one.version for one in narrow.history("ImagingStudy", made.id)] == [2]
        assert _refusal(narrow.vread, "ImagingStudy", made.id, 1) is Category.NOT_FOUND

    def test_a_deletion_is_told_to_those_who_could_see(self, repo: Repository, narrow: Repository) -> None:
        mine, other = repo.create(_study("Patient/1")), repo.create(_study("Patient/2"))
        repo.delete("ImagingStudy", mine.id)
        repo.delete("ImagingStudy", other.id)

        assert _refusal(narrow.read, "ImagingStudy", mine.id) is Category.GONE
        assert _refusal(narrow.read, "ImagingStudy", other.id) is Category.NOT_FOUND

    def test_what_comes_along_is_restricted_too(self, repo: Repository, narrow: Repository) -> None:
        repo.create(_patient(), id="1")
        repo.create(_study("Patient/1"))
        repo.create(_study("Patient/2"))
        repo.create(_patient(), id="2")
        readers = repo.opened_for(
            Restriction(
                {"Patient": Rule(read=ALLOW), "ImagingStudy": Rule(read=(clause("ImagingStudy", "patient", "1"),))}
            )
        )

        forward = narrow.search(parse("ImagingStudy", [("_include", "ImagingStudy:patient")]))
        reverse = readers.search(parse("Patient", [("_revinclude", "ImagingStudy:patient")]))

        assert forward.includes == []
        assert [one.json()["subject"]["reference"] for one in reverse.includes] == ["Patient/1"]

    def test_no_clause_at_all_allows_nothing(self, repo: Repository) -> None:
        empty = repo.opened_for(Restriction({"Patient": Rule((), (), (), ())}))

        assert _refusal(empty.search, parse("Patient", [])) is Category.FORBIDDEN
        assert _refusal(empty.create, _patient()) is Category.FORBIDDEN


def test_find_one_wants_one(repo: Repository) -> None:
    made = repo.create(_patient(identifier=[{"system": "s", "value": "1"}]))

    assert repo.find_one("Patient", "identifier", "s|1") == made
    assert repo.find_one("Patient", "identifier", "s|2") is None
    repo.create(_patient(identifier=[{"system": "s", "value": "1"}]))
    assert _refusal(repo.find_one, "Patient", "identifier", "s|1") is Category.CONFLICT


# ---- several acts in one transaction


def test_acts_together_are_kept_together(repo: Repository) -> None:
    first, second = repo.together(lambda one: (one.create(_patient()), one.create(_patient())), where="two")

    assert {repo.read("Patient", each.id).version for each in (first, second)} == {1}


def test_what_is_raised_undoes_all_acts(repo: Repository, db: Database[Json]) -> None:
    def act(one: Repository) -> None:
        one.create(_patient())
        one.update(_patient(id="unknown"))

    assert _refusal(repo.together, act, where="two") is Category.UNSUPPORTED
    assert [db[name].count_documents({}) for name in ("resources", "history")] == [0, 0]


def test_acts_together_see_one_another(repo: Repository) -> None:
    def act(one: Repository) -> tuple[int, int, int]:
        made = one.create(_patient(gender="male"))
        one.update(_patient(id=made.id, gender="female"))
        found = one.search(parse("Patient", [("gender", "female")])).matches
        return len(found), one.vread("Patient", made.id, 1).version, len(one.history("Patient", made.id))

    assert repo.together(act, where="acts") == (1, 1, 2)


def test_acts_together_begin_again_when_others_were_first(repo: Repository) -> None:
    made = repo.create(_patient())
    tries: list[int] = []

    def act(one: Repository) -> int:
        version = one.read("Patient", made.id).version
        tries.append(version)
        if len(tries) == 1:
            repo.update(_patient(id=made.id, gender="other"))
        return one.update(_patient(id=made.id, gender="male"), if_match=version).version

    assert repo.together(act, where="acts") == 3
    assert tries == [1, 2]


# ---- patching


def test_a_patch_makes_a_version_of_what_is_there(repo: Repository) -> None:
    made = repo.create(_patient(gender="male"))

    patched = repo.patch("Patient", made.id, lambda current: {**current, "active": True}, if_match=1)

    assert (patched.version, patched.method) == (2, "PATCH")
    assert {name: patched.json()[name] for name in ("gender", "active")} == {"gender": "male", "active": True}


def test_nothing_is_patched_that_is_not_there_or_not_at_the_version(repo: Repository) -> None:
    made = repo.create(_patient())

    assert _refusal(repo.patch, "Patient", made.id, dict, if_match=2) is Category.PRECONDITION
    assert _refusal(repo.patch, "Patient", "unknown", dict) is Category.NOT_FOUND
    repo.delete("Patient", made.id)
    assert _refusal(repo.patch, "Patient", made.id, dict) is Category.GONE


# ---- histories of types


def test_versions_written_before_they_named_their_type_are_found_too(repo: Repository, db: Database[Json]) -> None:
    repo.create(_patient())
    db["history"].update_many({}, {"$unset": {"type": ""}})
    db["schema"].update_one({"_id": "version"}, {"$set": {"number": 1}})

    ensure_schema(db)

    assert len(repo.changes(["Patient"], count=10).found) == 1


def test_what_the_outbox_had_is_marked_in_the_history(repo: Repository, db: Database[Json]) -> None:
    """As a store of an earlier version: what was looked at has no row there, an announcement has version 0."""
    first, second = repo.create(_patient()), repo.create(_patient())
    db["history"].update_many({}, {"$unset": {"unseen": ""}})
    waits = {"key": second.key, "version": 1, "method": "POST", "at": second.last_updated}
    number = db["outbox"].insert_one(waits).inserted_id
    db["outbox"].insert_one({"key": "Subscription/x", "version": 0, "method": "PUT", "at": second.last_updated})
    db["schema"].update_one({"_id": "version"}, {"$set": {"number": 4}})

    ensure_schema(db)

    marks = {row["_id"]: row.get("unseen") for row in db["history"].find()}
    assert marks == {f"{first.key}/1": None, f"{second.key}/1": {"at": second.last_updated, "number": number}}
    assert "outbox" not in db.list_collection_names()


def test_the_history_of_types_follows_its_index(repo: Repository, db: Database[Json]) -> None:
    for kind in ("Patient", "Location"):
        repo.create({"resourceType": kind})

    plan = db.command(
        "explain",
        {
            "find": "history",
            "filter": {"type": {"$in": ["Location", "Patient"]}},
            "sort": {"lastUpdated": -1, "version": -1, "_id": -1},
            "limit": 10,
        },
    )

    assert "SORT_MERGE" in str(plan)
    assert "'COLLSCAN'" not in str(plan["queryPlanner"]["winningPlan"])
