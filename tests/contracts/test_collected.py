"""What is remembered of sources, on a real database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.model.peer import Peer, Way
from fhir_server.store.collected import FILE, MOST_REASONS, REFUSED, STUDY, Collected, Mark, Note, Tally
from fhir_server.store.peers import Peers

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def kept(db: Database[dict[str, Any]]) -> Collected:
    collected = Collected(db)
    collected.ensure_indexes()
    return collected


def test_a_later_note_takes_the_place_of_an_earlier_one_and_kinds_and_sources_are_apart(kept: Collected) -> None:
    kept.note("a", [Note(STUDY, "1.2", "1/3"), Note(FILE, "1.2", "f")], NOW)
    kept.note("b", [Note(STUDY, "1.2", "other")], NOW)
    kept.note("a", [Note(STUDY, "1.2", "1/4", NOW)], NOW)

    assert kept.notes("a", STUDY, ["1.2", "1.3"]) == {"1.2": Note(STUDY, "1.2", "1/4", NOW)}
    assert kept.notes("a", FILE, ["1.2"])["1.2"].value == "f"
    assert (kept.count("a", STUDY), kept.count("b", STUDY), kept.count("c", STUDY)) == (1, 1, 0)


def test_what_is_due_comes_longest_due_first_and_what_has_no_time_never(kept: Collected) -> None:
    hours = {"late": 2, "first": -5, "second": -1}
    kept.note("a", [Note(STUDY, key, "", NOW + timedelta(hours=each)) for key, each in hours.items()], NOW)
    kept.note("a", [Note(STUDY, "never", "")], NOW)

    assert [each.key for each in kept.due("a", STUDY, NOW, 10)] == ["first", "second"]
    assert [each.key for each in kept.due("a", STUDY, NOW, 1)] == ["first"]


def test_of_two_that_begin_a_round_one_does(kept: Collected) -> None:
    assert kept.begin("a", 0, "one", NOW, begun=NOW)
    assert not kept.begin("a", 0, "two", NOW, begun=NOW)
    assert (kept.mark("a").task, kept.mark("a").number, kept.mark("a").is_done) == ("one", 1, False)
    assert kept.begin("a", 1, "two", NOW, begun=NOW)


def test_a_source_that_nobody_looked_at_has_an_empty_mark(kept: Collected) -> None:
    assert kept.mark("a") == Mark()
    assert kept.marks() == {}


def test_a_round_adds_up_and_a_day_begins_at_nothing(kept: Collected) -> None:
    kept.add("a", Tally(stored=2, here=1, bytes=10, studies=["1"], reasons=["x"]), "20260601")
    kept.add("a", Tally(stored=1, refused=1, failed=1, bytes=5, studies=["1", "2"], reasons=["y"] * 30), "20260601")

    mark = kept.mark("a")
    assert (mark.round.stored, mark.round.here, mark.round.refused, mark.round.failed) == (3, 1, 1, 1)
    assert mark.round.bytes == mark.day_bytes == 15
    assert sorted(mark.round.studies) == ["1", "2"]
    assert len(mark.round.reasons) <= MOST_REASONS
    assert mark.day_instances == 5
    kept.add("a", Tally(stored=1, bytes=1), "20260602")
    assert (kept.mark("a").day_instances, kept.mark("a").day_bytes, kept.mark("a").round.stored) == (1, 1, 4)
    kept.begin("a", kept.mark("a").number, "next", NOW, begun=NOW)
    assert kept.mark("a").round == Tally()


def test_words_that_look_like_operators_are_words(kept: Collected) -> None:
    kept.add("a", Tally(studies=["$day"], reasons=["$round.stored"]), "20260601")

    assert (kept.mark("a").round.studies, kept.mark("a").round.reasons) == (["$day"], ["$round.stored"])


def test_failures_are_counted_and_a_change_of_the_peer_ends_them(kept: Collected, db: Database[dict[str, Any]]) -> None:
    assert [kept.fail("a", "away"), kept.fail("a", "away")] == [1, 2]
    kept.change("a", due=NOW)

    Peers(db).put(Peer("a", "Organization/1", Way.DICOMWEB, "https://a.example"))

    assert kept.mark("a") == Mark(number=0)


def test_what_is_forgotten_is_asked_for_anew_and_a_removed_peer_leaves_nothing(
    kept: Collected, db: Database[dict[str, Any]]
) -> None:
    kept.note("a", [Note(STUDY, "1", ""), Note(REFUSED, "2", "no")], NOW)
    kept.change("a", latest="20260101", failures=3)

    kept.forget("a")

    assert (kept.count("a", STUDY), kept.count("a", REFUSED), kept.mark("a").latest) == (0, 0, "")
    assert kept.mark("a").failures == 3
    kept.note("a", [Note(STUDY, "1", "")], NOW)
    Peers(db).remove("a")
    assert (kept.count("a", STUDY), kept.marks()) == (0, {})


def test_a_change_stream_tells_of_new_peers_and_of_what_became_due(
    kept: Collected, db: Database[dict[str, Any]]
) -> None:
    kept.change("a", failures=1)
    with kept.watch(200) as news:
        kept.change("a", failures=2)
        assert news() is None
        kept.change("a", due=NOW)
        assert news() == NOW
        Peers(db).put(Peer("b", "Organization/1", Way.DICOMWEB, "https://a.example"))
        assert news() < NOW
