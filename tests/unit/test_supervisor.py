"""The supervisor's rules: order, restarts with back-off, and the limit."""

import pytest

from fhir_server.supervisor import Restarts, Supervisor
from imaging.errors import AppError, Category


class Recorder:
    """A part that writes down what happens to it; `alive` is set by the test."""

    def __init__(self, name, events, *, fails=False):
        self.name, self.events, self.fails = name, events, fails
        self.alive = False

    def start(self):
        self.events.append(f"start {self.name}")
        if self.fails:
            raise AppError(Category.FAULT, "broken")
        self.alive = True

    def is_running(self):
        return self.alive

    def stop(self):
        self.events.append(f"stop {self.name}")
        self.alive = False


def test_parts_start_in_order_and_stop_in_the_reverse_order():
    events = []
    supervisor = Supervisor([Recorder("a", events), Recorder("b", events)])

    supervisor.start()
    supervisor.stop()

    assert events == ["start a", "start b", "stop b", "stop a"]


def test_a_part_that_cannot_start_stops_those_before_it():
    events = []
    supervisor = Supervisor([Recorder("a", events), Recorder("b", events, fails=True)])

    with pytest.raises(AppError, match="broken"):
        supervisor.start()

    assert events[-1] == "stop a"


def test_a_part_that_died_is_started_again_after_a_pause():
    part = Recorder("a", [])
    supervisor = Supervisor([part], restarts=lambda: Restarts(first_s=1))
    supervisor.start()

    part.alive = False
    supervisor.check(100.0)
    supervisor.check(100.9)
    assert not part.alive
    supervisor.check(101.0)

    assert part.alive


def test_a_restart_that_fails_is_tried_again_and_counts():
    part = Recorder("a", [], fails=True)
    supervisor = Supervisor([part], restarts=lambda: Restarts(limit=2, first_s=0, longest_s=0))

    for now_s in range(4):
        supervisor.check(float(now_s))

    with pytest.raises(AppError, match="the a ended again and again: broken"):
        supervisor.check(4.0)
    assert part.events == ["start a", "start a"]


def test_the_pause_doubles_up_to_the_longest():
    restarts = Restarts(limit=10, first_s=1, longest_s=5)

    assert [restarts.after_death(0.0) for _ in range(4)] == [1, 2, 4, 5]


def test_too_many_deaths_within_the_window_end_it_and_old_ones_are_forgotten():
    restarts = Restarts(limit=2, window_s=60)

    assert restarts.after_death(0.0) is not None
    assert restarts.after_death(1.0) is not None
    assert restarts.after_death(2.0) is None
    assert restarts.after_death(100.0) is not None
