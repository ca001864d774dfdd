"""Trainings in a window against a simulated clock: the real plan arithmetic, the real controller, the real schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline_lib.planning.controller import WindowController
from pipeline_lib.planning.window import After, Load, Window, course, fit
from pipeline_lib.training.schedule import planned

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Moves when told to."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


@dataclass
class Night:
    """One scenario: what was planned, and what will really happen."""

    plan: dict[str, Any]
    load: Load
    window: Window
    seconds_of: Callable[[int, float], float]  # (step, seconds since the run's start) → seconds that the step takes
    stalls: dict[int, float] = field(default_factory=dict)  # before step → seconds
    kill_at: float = 0.0  # seconds since the run's start: after the step that ends then the process is killed, once
    downtime: float = 0.0  # until its successor stands at the newest checkpoint
    after: float = 1.0  # what comes after training takes this share of what was reserved

    @property
    def training_end(self) -> float:
        """When training should be over, the margin free, seconds since the run's start."""
        return self.window.total - self.window.after.reserved - self.window.margin


@dataclass(frozen=True)
class Ended:
    """How a night ended."""

    steps: int
    factors: list[float]  # of every step that counts: what a kill undid is not among them
    trained: float  # seconds from the run's start to the end of training
    seconds: float  # … to the end of the run
    kinds: list[str]  # decisions

    @property
    def decay_share(self) -> float:
        """Of the steps that count, those after the last one at full rate."""
        full = max((index for index, factor in enumerate(self.factors) if factor >= max(self.factors) - 1e-9), default=-1)
        return (self.steps - 1 - full) / self.steps

    @property
    def annealed(self) -> bool:
        """The decay covers 8 % of the steps, and the last rate is at most 1 % of the peak."""
        return self.decay_share >= 0.08 - 1e-9 and self.factors[-1] <= 0.01 + 1e-9


def details(
    load: Load, window: Window, *, max_steps: int = 10**9, decay_share: float = 0.2, schedule: Any = "wsd"
) -> dict[str, Any]:
    """What the stage `plan` would write."""
    found = fit(load, seconds=window.training, max_steps=0, epoch_steps=max_steps, priority="balanced")
    shape = course(found.steps, schedule=schedule, warmup_steps=found.steps // 40, decay_share=decay_share)
    return {
        "steps": found.steps, "warmup_steps": shape.warmup_steps, "decay_steps": shape.decay_steps, "schedule": schedule,
        "evaluate_every": found.evaluate_every, "save_every": found.save_every, "seconds_per_step": load.step,
        "overhead_per_step": found.overhead_per_step(load), "max_steps": max_steps, "interval": [0.9, 1.1],
        "reserve": {"margin": window.margin, "after_training": window.after.reserved, "closing": load.closing},
    }  # fmt: skip


def simulate(night: Night) -> Ended:
    """Train against the clock as the stage `train` does: step, evaluate, ask, save; a kill goes back to the newest checkpoint."""
    plan, load = night.plan, night.load
    clock = Clock(night.window.spent + night.window.start_up + load.evaluate)
    deadline = START + timedelta(seconds=night.window.total)
    controller = WindowController(plan, clock, deadline, True)
    schedule = planned(plan["schedule"], steps=plan["steps"], warmup_steps=plan["warmup_steps"], decay_steps=plan["decay_steps"])
    step, kill_at = 0, night.kill_at
    factors: list[float] = []
    kinds: list[str] = []
    saved = (step, schedule, controller.state())
    while step < schedule.total_steps:
        factors.append(schedule.factor(step))
        clock.seconds += night.stalls.pop(step, 0.0) + night.seconds_of(step, clock.seconds)
        step += 1
        clock.seconds += load.evaluate * (step % plan["evaluate_every"] == 0 and step < schedule.total_steps)
        decision = controller.on_step(step, 0.0)
        if decision.kind == "stop":
            schedule = schedule.stopped(step)
        elif decision.kind == "replan":
            schedule = schedule.moved(step, decision.total_steps, decision.decay_start)
        elif decision.kind == "start_decay":
            schedule = schedule.decay_now(step, decision.decay_steps)
        if decision.kind != "continue":
            kinds.append(decision.kind)
        if step % plan["save_every"] == 0 and step < schedule.total_steps:
            clock.seconds += load.save
            saved = (step, schedule, controller.state())
        if kill_at and clock.seconds >= kill_at:
            kill_at, (step, schedule, state) = 0, saved
            clock.seconds += night.downtime
            del factors[step:]
            controller = WindowController(plan, clock, deadline, True)
            if step:
                controller.restore(state)
    clock.seconds += load.closing
    return Ended(step, factors, clock.seconds, clock.seconds + night.after * night.window.after.reserved, kinds)


def random_night(rng: random.Random, *, validation_too: bool = False) -> Night:
    """A window of three minutes to twelve hours with random sizes and drift, and at most one of each: half the speed for a third
    of the run, stalls within the margin, a kill in the first 85 % of the training time, resumed within half of the margin.

    Args:
        rng: of everything.
        validation_too: what is slow at the end of training is slow while it is validated, too.
    """
    total = rng.choice([180.0, 600.0, 1800.0, 43200.0])
    margin = total * rng.uniform(0.03, 0.05)
    spent, reserved = total * rng.uniform(0.05, 0.35), total * 0.02 + rng.uniform(5, 15)
    window = Window(total, spent, margin, After(reserved, reserved, 0.0), total * 0.01 + 2)
    step = window.training / math.exp(rng.uniform(math.log(80), math.log(2500)))
    load = Load(step, step * rng.uniform(0.3, 5), step * rng.uniform(0.1, 1.5))
    plan = details(load, window, schedule=rng.choice(["wsd", "wsd", "linear"]))
    steps = plan["steps"]
    speed, slow_from = rng.uniform(0.85, 1.15), rng.uniform(0.0, 0.95)
    slow = rng.random() < 0.6
    training = window.training

    def seconds_of(at: int, now: float) -> float:
        share = (now - window.spent - window.start_up) / training
        slowed = 0.5 if slow and slow_from <= share < slow_from + 1 / 3 else 1.0
        return step / (speed * slowed) * rng.lognormvariate(0, 0.06)

    kill = window.spent + window.start_up + rng.uniform(0.05, 0.85) * training if rng.random() < 0.4 else 0.0
    room = margin * (0.4 if kill or slow else 0.8)
    places = [int(rng.uniform(0, 0.95) * steps) for _ in range(rng.randint(0, 2))]
    stalls = {place: room / len(places) * rng.uniform(0.3, 1.0) for place in places}
    after = rng.uniform(0.8, 1.05)
    if validation_too and slow:  # for the rest of the third
        after *= min(1 + max(slow_from + 1 / 3 - 1, 0.0) * training / (2 * window.after.reserved), 2.0)
    return Night(plan, load, window, seconds_of, stalls, kill, rng.uniform(0.2, 0.5) * margin, after)
