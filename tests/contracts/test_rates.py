"""Counting requests on a real database. Expected values: what the limit says."""

import gc

from fhir_server.store.rates import Rates


def test_who_asks_too_often_waits_until_the_minute_is_over(db):
    rates = Rates(db, per_minute=3)

    waits = [rates.wait_s("sign-in", "10.0.0.1") for _ in range(4)]

    assert waits[:3] == [0, 0, 0]
    assert 1 <= waits[3] <= 61
    assert rates.wait_s("sign-in", "10.0.0.2") == 0


def test_what_counted_is_gone_and_the_database_still_answers(db):
    rates = Rates(db, per_minute=3)
    rates.wait_s("sign-in", "10.0.0.1")
    del rates
    gc.collect()

    assert db.command("ping")["ok"] == 1
