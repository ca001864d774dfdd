"""The window controller over a simulated clock: 300 random nights (10,000 in the benchmark `window`), and single promises."""

import random
import statistics
from datetime import timedelta
from itertools import pairwise

import pytest

from pipeline_lib.planning.controller import WindowController
from pipeline_lib.planning.window import After, Load, Window
from pipeline_lib.training.schedule import planned
from tests.window_nights import START, Clock, Night, details, random_night, simulate


def test_300_random_nights_end_in_time_and_annealed():
    rng = random.Random(7)
    unused, most_events = [], 0
    for number in range(300):
        night = random_night(rng)
        ended = simulate(night)
        assert ended.seconds <= night.window.total, f"night {number}: {ended.seconds - night.window.total:.0f} s late"
        assert ended.annealed, f"night {number}: decay of {ended.decay_share:.1%}, last rate {ended.factors[-1]:.2%}"
        assert "stop" not in ended.kinds
        after = ended.factors[night.plan["warmup_steps"] :]
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after)), f"night {number}: the rate rose again"
        unused.append((night.window.total - night.window.margin - ended.seconds) / night.window.total)
        most_events = max(most_events, len(ended.kinds))
    assert abs(statistics.median(unused)) < 0.01
    assert sorted(unused)[285] < 0.06  # a machine that is slow at the end gets more time for validation than it needs here
    assert most_events <= 80


WINDOW = Window(total=1000.0, spent=100.0, margin=50.0, after=After(40.0, 40.0, 0.0), start_up=10.0)
LOAD = Load(step=0.5, evaluate=4.0, save=1.0)


def night(seconds_of, *, load=LOAD, **plan):
    return Night(details(load, WINDOW, **plan), load, WINDOW, lambda step, now: seconds_of(step))


def test_on_plan_nothing_moves():
    planned_night = night(lambda step: 0.5)
    ended = simulate(planned_night)
    assert (ended.steps, ended.kinds) == (planned_night.plan["steps"], [])
    assert ended.trained == pytest.approx(910.0, abs=10)


def test_an_evaluation_that_takes_longer_than_planned_is_foreseen_at_the_end():
    real = Load(step=0.5, evaluate=40.0, save=1.0)
    ended = simulate(Night(details(LOAD, WINDOW), real, WINDOW, lambda step, now: 0.5))
    assert ended.trained <= 910 + 0.6 * WINDOW.margin, "the last one, too: planned for one of 4 s it would miss the deadline"
    assert ended.annealed


@pytest.mark.parametrize("schedule", ["wsd", "linear"])
def test_half_the_speed_halves_the_steps_and_twice_the_speed_uses_the_time(schedule):
    plan = details(LOAD, WINDOW, schedule=schedule)
    slow, fast = (simulate(night(lambda step, s=s: s, schedule=schedule)) for s in (1.0, 0.25))
    assert slow.steps == pytest.approx(plan["steps"] / 2, rel=0.05)
    assert fast.steps == pytest.approx(plan["steps"] * 2, rel=0.12)
    assert 860 < fast.trained <= 910
    assert slow.annealed
    assert fast.annealed


def test_never_beyond_the_data():
    within = night(lambda step: 0.1, max_steps=700)
    assert within.plan["steps"] == 700
    assert simulate(within).steps == 700


def test_a_slow_down_inside_the_decay_brings_the_end_nearer_and_its_end_uses_the_time_again():
    plan = details(LOAD, WINDOW)
    start = plan["steps"] - plan["decay_steps"]
    slow = simulate(night(lambda step: 0.5 if step < start + 5 else 1.1))
    assert "replan" in slow.kinds
    assert slow.steps < plan["steps"]
    assert slow.annealed
    assert slow.trained <= 960
    eased = simulate(night(lambda step: 1.0 if start - 300 < step < start - 60 else 0.5))
    assert eased.annealed
    assert eased.trained == pytest.approx(910, abs=15)


def test_when_nothing_fits_it_stops_and_says_so():
    stalled = night(lambda step: 0.5)
    stalled.stalls[300] = 900.0
    ended = simulate(stalled)
    assert ended.kinds[-1] == "stop"
    assert ended.steps == 301
    assert ended.trained < 1200


def test_a_killed_and_resumed_training_ends_in_time():
    whole, killed = simulate(night(lambda step: 0.8)), night(lambda step: 0.8)
    killed.kill_at, killed.downtime = 500.0, 20.0
    ended = simulate(killed)
    lost = (20.0 + killed.plan["save_every"] * 0.8) / 0.8
    assert whole.steps - lost - 15 <= ended.steps < whole.steps
    assert ended.annealed
    assert ended.trained <= 960


def test_a_new_window_is_planned_for_at_the_first_step():
    """A person's retry after the deadline: the controller of the next attempt knows another deadline."""
    plan, clock = details(LOAD, WINDOW), Clock(110)
    first = WindowController(plan, clock, START + timedelta(seconds=1000))
    for step in range(1, 301):
        clock.seconds += 0.5
        assert first.on_step(step, 0).kind == "continue"
    clock.seconds = 5000
    second = WindowController(plan, clock, START + timedelta(seconds=5000 + 500))
    second.restore(first.state())
    clock.seconds += 0.5
    decision = second.on_step(301, 0)
    assert decision.kind == "replan"
    assert decision.total_steps == pytest.approx(300 + (500 - 90) / second.pace, rel=0.03)


@pytest.mark.parametrize("schedule", ["wsd", "linear"])
def test_a_decay_that_was_asked_for_begins_with_the_next_step_and_no_later_re_plan_takes_it_back(schedule):
    plan, clock = details(LOAD, WINDOW, schedule=schedule), Clock(110)
    controller = WindowController(plan, clock, START + timedelta(seconds=1000))
    course = planned(schedule, steps=plan["steps"], warmup_steps=plan["warmup_steps"], decay_steps=plan["decay_steps"])
    step, kinds = 0, []
    while step < course.total_steps:
        clock.seconds += plan["seconds_per_step"] + plan["overhead_per_step"]
        step += 1
        if step == 400:
            controller.ask_for_decay("no gain on dev")
        decision = controller.on_step(step, 0)
        if decision.kind != "continue":
            kinds.append((step, decision.kind, decision.reason.partition(": ")[2]))
            moved = course.moved(step, decision.total_steps, decision.decay_start)
            course = moved if decision.kind == "replan" else course.decay_now(step, decision.decay_steps)
    assert kinds[-1] == (400, "start_decay", "no gain on dev")
    assert step == 500
    assert course.factor(499) == pytest.approx(0.01)


def test_the_outlook_says_what_to_do_and_names_the_setting():
    plan, clock = details(LOAD, WINDOW, max_steps=3000), Clock(110)
    controller = WindowController(plan, clock, START + timedelta(seconds=1000))
    on_plan = controller.outlook()
    assert on_plan["on_track"]
    assert on_plan["advice"] == ""
    assert on_plan["end_seconds"] == pytest.approx(840, abs=10)
    assert on_plan["end_low"] < on_plan["end_seconds"] < on_plan["end_high"] <= 890
    for step in range(1, 200):
        clock.seconds += 1.0
        controller.on_step(step, 0)
    slower = controller.outlook()
    assert slower["steps_per_hour"] == pytest.approx(3600, rel=0.1)
    assert "resources.max_hours" in slower["advice"]
    clock.seconds = 1000
    assert not controller.outlook()["on_track"]
    assert "deadline will be missed" in controller.outlook()["advice"]


def test_without_a_deadline_or_when_recorded_the_plan_is_followed_to_the_step():
    plan = details(LOAD, WINDOW)
    clock = Clock()
    for deadline, adaptive in ((None, True), (START, False)):
        controller = WindowController(plan, clock, deadline, adaptive)
        for step in range(1, 50):
            clock.seconds += 1000
            assert controller.on_step(step, 1.0).kind == "continue"
    assert WindowController(plan, clock, None).outlook()["remaining_seconds"] is None
    assert not WindowController({**plan, "replan": False}, clock, START, True).adaptive


def test_a_machine_that_became_slow_has_time_to_validate_slowly() -> None:
    window, load = Window(600.0, 60.0, 24.0, After(60.0, 60.0, 0.0), 10.0), Load(0.5, 1.0, 0.3)

    def slow_from_the_middle(step: int, now: float) -> float:
        return load.step * (2.0 if now > 300 else 1.0)

    ended = simulate(Night(details(load, window), load, window, slow_from_the_middle, after=2.0))
    assert ended.annealed
    assert 0.9 * window.total < ended.seconds <= window.total
