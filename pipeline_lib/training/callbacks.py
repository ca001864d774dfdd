"""What happens after a step, one job a class, called in this order: evaluate, ask the controller, save, tell, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from pipeline_lib.errors import StoppedError
from pipeline_lib.training.data import Batch
from pipeline_lib.training.evaluate import Evaluation, evaluate
from pipeline_lib.training.hooks import Controller
from pipeline_lib.training.loop import Session
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.saving import load_weights, weights_of

POINTS = 500  # of a curve that goes to the tracker
TELL_SECONDS = 1.0


class DevLoss(TrainerCallback):
    """Dev loss before the first step, every `evaluate_every` steps, and at the end; never twice for a step."""

    def __init__(
        self,
        session: Session,
        batches: Sequence[Batch],
        metrics: Callable[..., None],
        then: Callable[[Evaluation], None] = lambda evaluation: None,
    ) -> None:
        self.session, self.batches, self.metrics, self.then = session, batches, metrics, then
        self.curve: list[list[float]] = []  # [step, loss]

    def state(self) -> list[list[float]]:
        """For a checkpoint."""
        return self.curve

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """From a checkpoint."""
        self.curve = [list(point) for point in state]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step."""
        if self.session.step == 0:
            self._evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where it is due."""
        every = self.session.plan.evaluate_every
        if (every and self.session.step % every == 0) or self.session.finished:
            self.now()

    def at(self, step: int) -> float | None:
        """The dev loss of a step, where it was evaluated."""
        return next((loss for seen, loss in self.curve if seen == step), None)

    def of(self, weights: Mapping[str, Tensor]) -> float:
        """The dev loss of a checkpoint's weights; then the model is as it was, and the curve has no point of it."""
        session = self.session
        with session.pause():
            own = {name: tensor.clone() for name, tensor in weights_of(session.model).items()}
            try:
                load_weights(session.model, weights)
                return evaluate(session.model, session.objective, self.batches).loss
            finally:
                with torch.no_grad():
                    for name, tensor in weights_of(session.model).items():
                        tensor.copy_(own[name])

    def now(self) -> float:
        """The dev loss at the session's step, evaluated now if it was not yet (a controller may have ended the schedule)."""
        if not self.curve or self.curve[-1][0] != self.session.step:
            self._evaluate()
        return self.curve[-1][1]

    def _evaluate(self) -> None:
        session = self.session
        with session.pause():
            found = evaluate(session.model, session.objective, self.batches)
            self.curve.append([session.step, found.loss])
            self.metrics({"dev_loss": found.loss}, step=session.step)
            self.then(found)


class Window(TrainerCallback):
    """Asks the controller after every step and puts its decision into effect."""

    def __init__(self, session: Session, controller: Controller, event: Callable[..., None]) -> None:
        self.session, self.controller, self.event = session, controller, event
        self.begin = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The attempt's clock starts."""
        self.begin = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask, follow, record."""
        session, step = self.session, self.session.step
        decision = self.controller.on_step(step, time.monotonic() - self.begin)
        before = session.schedule
        if decision.kind == "continue" or session.finished:
            return
        if decision.kind == "start_decay":
            session.follow(before.decay_now(step, decision.decay_steps))
        elif decision.kind == "replan":
            session.follow(before.moved(step, decision.total_steps, decision.decay_start))
        else:
            session.follow(before.stopped(step))
        after = session.schedule
        self.event(
            "schedule_changed", step=step, decision=decision.kind, reason=decision.reason,
            total_steps=[before.total_steps, after.total_steps], decay_start=[before.decay_start, after.decay_start],
        )  # fmt: skip


class Saver(TrainerCallback):
    """Saves every `save_every` steps, before the decay of a schedule that holds its rate (to go on from there), at the end."""

    def __init__(self, session: Session, save: Callable[[bool], None], check: Callable[[], None]) -> None:
        self.session, self.save, self.check = session, save, check

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where it is due; and raise what went wrong with the one before."""
        self.check()
        session, schedule = self.session, self.session.schedule
        every = session.plan.save_every
        decays = schedule.kind == "wsd" and session.step == schedule.decay_start
        if (every and session.step % every == 0) or decays or session.finished:
            with session.pause():
                self.save(True)


class Stop(TrainerCallback):
    """Leaves cleanly when a person or a signal asks for it: a checkpoint, then an error that says how to go on."""

    def __init__(self, session: Session, should_stop: Callable[[], bool], save: Callable[[], None]) -> None:
        """`save` returns when the checkpoint is committed."""
        self.session, self.should_stop, self.save = session, should_stop, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look after every step.

        Raises:
            StoppedError: a stop was asked for, and a checkpoint is committed.
        """
        if self.should_stop() and not self.session.finished:
            self.save()
            raise StoppedError(
                f"stopped on request after step {self.session.step:,}; a checkpoint is saved",
                where="stage train",
                fix="run it again: it goes on from there",
            )


class Tell(TrainerCallback):
    """The progress line and the tracker's curves."""

    def __init__(
        self,
        session: Session,
        monitor: Monitor,
        *,
        progress: Callable[[float, float, str, str], None],
        metrics: Callable[..., None],
        outlook: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.session, self.monitor, self.progress, self.metrics = session, monitor, progress, metrics
        self.outlook, self.last = outlook, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At most a line a second, and some hundred points a curve."""
        session, row = self.session, self.monitor.latest
        if not row:
            return
        if session.finished or session.step % max(1, session.schedule.total_steps // POINTS) == 0:
            self.metrics({**_curves(row, self.monitor), **_window_curves(self.outlook())}, step=session.step)
        if session.finished or time.monotonic() - self.last >= TELL_SECONDS:
            self.last = time.monotonic()
            self.progress(session.step, session.schedule.total_steps, "steps", self.note())

    def note(self) -> str:
        """`loss 5.583 | 106,212 tok/s | MFU 41% | 3,900 steps/h | ETA 04:23 | window +00:37`, and advice in danger.

        The window is what will be left of it at the end of the whole run.
        """
        rate, window = self.monitor.tokens_per_second or 1e-9, self.outlook()
        left = (self.session.schedule.total_steps - self.session.step) * self.monitor.tokens_per_step / rate
        share = rate * self.monitor.flops_per_token / self.monitor.peak.flops
        parts = [f"loss {self.monitor.smooth_loss:.3f}", f"{rate:,.0f} tok/s", f"MFU {share:.0%}"]
        if window:
            parts.append(f"{window['steps_per_hour']:,.0f} steps/h")
        parts.append(f"ETA {clock_time(left)}")
        if window and window["remaining_seconds"] is not None:
            slack = window["remaining_seconds"] - window["end_seconds"]
            parts.append(f"window {'+' if slack >= 0 else '-'}{clock_time(abs(slack))}")
            parts += [window["advice"]] if window["advice"] else []
        return " | ".join(parts)


def _window_curves(window: Mapping[str, Any]) -> dict[str, float]:
    names = ("remaining_seconds", "end_seconds", "end_low", "end_high", "margin_seconds", "steps_per_hour", "on_track")
    return {f"window/{name}": float(window[name]) for name in names if window.get(name) is not None}


def _curves(row: Mapping[str, Any], monitor: Monitor) -> dict[str, float]:
    names = {"lr": "learning_rate", "grad_norm": "grad_norm", "tokens_per_second": "tokens_per_second", "mfu": "mfu",
             "data_wait": "data_wait", "utilisation": "utilisation", "temperature": "temperature"}  # fmt: skip
    return {"train_loss": monitor.smooth_loss, **{shown: row[name] for name, shown in names.items() if row[name] is not None}}


def clock_time(seconds: float) -> str:
    """mm:ss, or h:mm:ss from an hour on."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"
