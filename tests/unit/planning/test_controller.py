"""The window controller over a simulated clock: 500 random nights, and its single promises."""

import random
import statistics
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from pipeline_lib.planning.controller import LEAST_DECAY, WindowController
from pipeline_lib.planning.window import Load, Window, course, fit
from pipeline_lib.training.schedule import planned

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return START + timedelta(seconds=self.seconds)


def details(load, window, *, max_steps=10**9, decay_share=0.2):
    planned_fit = fit(load, seconds=window.training, max_steps=0, epoch_steps=max_steps, priority="balanced")
    shape = course(planned_fit.steps, schedule="wsd", warmup_share=0.05, decay_share=decay_share)
    return {
        "steps": planned_fit.steps, "warmup_steps": shape.warmup_steps, "decay_steps": shape.decay_steps, "schedule": "wsd",
        "evaluate_every": planned_fit.evaluate_every, "save_every": planned_fit.save_every, "seconds_per_step": load.step,
        "overhead_per_step": planned_fit.overhead_per_step(load), "max_steps": max_steps,
        "reserve": {"margin": window.margin, "after_training": window.after_training, "closing": load.closing},
    }  # fmt: skip


def simulate(plan, load, window, seconds_of, *, pause_at=lambda step: 0.0, restart_at=0):
    """Train against the clock as `train` does; returns (steps, schedule, lr factors, seconds at the end, stops)."""
    clock = Clock()
    clock.seconds = window.spent + window.start_up
    deadline = START + timedelta(seconds=window.total)
    controller = WindowController(plan, clock, deadline, True)
    schedule = planned("wsd", steps=plan["steps"], warmup_steps=plan["warmup_steps"], decay_steps=plan["decay_steps"])
    begin, step, factors, kinds = clock.seconds, 0, [], []
    while step < schedule.total_steps:
        factors.append(schedule.factor(step))
        clock.seconds += seconds_of(step) + pause_at(step)
        step += 1
        if step == restart_at:
            state = controller.state()
            clock.seconds += 5.0
            controller = WindowController(plan, clock, deadline, True)
            controller.restore(state)
        decision = controller.on_step(step, clock.seconds - begin)
        if decision.kind == "stop":
            kinds.append("stop")
            break
        if decision.kind == "replan":
            schedule = schedule.moved(step, decision.total_steps, decision.decay_start)
        elif decision.kind == "start_decay":
            schedule = schedule.decay_now(step, decision.decay_steps)
        if decision.kind != "continue":
            kinds.append(decision.kind)
        if step < schedule.total_steps:
            clock.seconds += load.evaluate * (step % plan["evaluate_every"] == 0) + load.save * (step % plan["save_every"] == 0)
    return step, schedule, factors, clock.seconds + load.closing, kinds


def annealing(factors):
    """Share of the steps after the last one at full rate."""
    full = max(index for index, factor in enumerate(factors) if factor >= 0.999)
    return (len(factors) - 1 - full) / len(factors)


def random_night(rng):
    total = rng.choice([270.0, 1800.0, 43200.0])
    margin = total * rng.uniform(0.04, 0.08)
    window = Window(total, total * rng.uniform(0.05, 0.35), margin, total * 0.01 + 20, total * 0.01)
    step = rng.uniform(0.05, 1.0) * (1 if total < 1000 else total / 600)
    load = Load(step, step * rng.uniform(2, 20), step * rng.uniform(0.5, 3))
    plan = details(load, window)
    true_speed = rng.uniform(0.85, 1.2)
    changes = sorted((rng.uniform(0, 0.95), rng.choice([0.5, 0.7, 0.9, 1.0, 1.3])) for _ in range(rng.randint(0, 3)))
    stalls = {int(rng.uniform(0, 0.95) * plan["steps"]): rng.uniform(0.05, 0.4) * margin for _ in range(rng.randint(0, 2))}

    def seconds_of(at):
        speed = true_speed
        for place, factor in changes:
            if at >= place * plan["steps"]:
                speed = factor
        return step / speed * rng.lognormvariate(0, 0.08)

    return plan, load, window, seconds_of, lambda at: stalls.get(at, 0.0)


def test_500_random_nights_end_in_time_and_annealed():
    rng = random.Random(7)
    unused, margin_used, last_rates, most_events = [], [], [], 0
    for night in range(500):
        plan, load, window, seconds_of, pause_at = random_night(rng)
        steps, schedule, factors, ended, kinds = simulate(plan, load, window, seconds_of, pause_at=pause_at)
        planned_end = window.total - window.after_training - window.margin
        late = ended - planned_end
        assert late <= window.margin, f"night {night}: {late:.0f} s late, margin {window.margin:.0f}"
        assert "stop" not in kinds, f"night {night} was cut off"
        assert annealing(factors) >= LEAST_DECAY - 1.5 / steps, f"night {night}: decay of {annealing(factors):.1%}"
        assert schedule.factor(steps) <= 0.01, f"night {night} ended at a rate of {schedule.factor(steps)}"
        after = factors[plan["warmup_steps"] :]
        assert all(later <= earlier for earlier, later in pairwise(after)), f"night {night}: the rate rose again"
        last_rates.append(factors[-1])
        unused.append(max(planned_end - ended, 0.0) / window.training)
        margin_used.append(max(late, 0.0) / window.margin)
        most_events = max(most_events, len(kinds))
    print(
        f"\n500 nights: unused share median {statistics.median(unused):.2%}, 95th percentile {sorted(unused)[475]:.1%}, "
        f"largest {max(unused):.1%}; margin used: 95th percentile {sorted(margin_used)[475]:.0%}, "
        f"largest {max(margin_used):.0%}; at most {most_events} changes a night; "
        f"rate of the last step: median {statistics.median(last_rates):.2%}, 95th percentile "
        f"{sorted(last_rates)[475]:.1%}, largest {max(last_rates):.1%} of the peak"
    )
    assert statistics.median(unused) < 0.01
    assert statistics.median(last_rates) <= 0.01
    assert max(last_rates) <= 0.1


WINDOW = Window(total=1000.0, spent=100.0, margin=50.0, after_training=40.0, start_up=10.0)
LOAD = Load(step=0.5, evaluate=4.0, save=1.0)


def test_on_plan_nothing_moves():
    plan = details(LOAD, WINDOW)
    steps, _, _, ended, kinds = simulate(plan, LOAD, WINDOW, lambda step: 0.5)
    assert (steps, kinds) == (plan["steps"], [])
    assert ended == pytest.approx(910.0, abs=10)


def test_half_the_speed_halves_the_steps_and_twice_the_speed_uses_the_time():
    plan = details(LOAD, WINDOW)
    slow, *_ = simulate(plan, LOAD, WINDOW, lambda step: 1.0)
    fast, *_, ended, _ = simulate(plan, LOAD, WINDOW, lambda step: 0.25)
    assert slow == pytest.approx(plan["steps"] / 2, rel=0.05)
    assert fast == pytest.approx(plan["steps"] * 2, rel=0.12)
    assert 860 < ended <= 910


def test_never_beyond_the_data():
    plan = details(LOAD, WINDOW, max_steps=700)
    assert plan["steps"] == 700
    steps, *_ = simulate(plan, LOAD, WINDOW, lambda step: 0.1)
    assert steps == 700


def test_a_slow_down_inside_the_decay_brings_the_end_nearer_but_keeps_the_least_decay():
    plan = details(LOAD, WINDOW)
    start = plan["steps"] - plan["decay_steps"]
    steps, _, factors, ended, kinds = simulate(plan, LOAD, WINDOW, lambda step: 0.5 if step < start + 5 else 1.1)
    assert "replan" in kinds
    assert steps < plan["steps"]
    assert annealing(factors) >= LEAST_DECAY
    assert ended <= 960


def test_when_nothing_fits_it_stops_and_says_so():
    plan = details(LOAD, WINDOW)
    steps, _, _, ended, kinds = simulate(plan, LOAD, WINDOW, lambda step: 0.5, pause_at=lambda step: 900.0 * (step == 300))
    assert kinds[-1] == "stop"
    assert steps == 301
    assert ended < 1200


def test_state_survives_a_restart():
    plan = details(LOAD, WINDOW)
    undisturbed, *_ = simulate(plan, LOAD, WINDOW, lambda step: 0.8)
    steps, _, factors, ended, _ = simulate(plan, LOAD, WINDOW, lambda step: 0.8, restart_at=400)
    assert undisturbed - 12 <= steps <= undisturbed
    assert annealing(factors) >= LEAST_DECAY
    assert ended <= 960


def test_without_a_deadline_or_when_recorded_the_plan_is_followed_to_the_step():
    plan = details(LOAD, WINDOW)
    clock = Clock()
    for deadline, adaptive in ((None, True), (START, False)):
        controller = WindowController(plan, clock, deadline, adaptive)
        for step in range(1, 50):
            clock.seconds += 1000
            assert controller.on_step(step, 1.0).kind == "continue"
    assert not WindowController({**plan, "replan": False}, clock, START, True).adaptive
