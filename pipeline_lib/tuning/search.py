"""The loop of a search: what is done next follows from what is recorded, so that a killed search goes on where it stood."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline_lib.errors import StoppedError
from pipeline_lib.tuning.feasible import Setting, Trial, job_of, trial_of
from pipeline_lib.tuning.pruning import Standing, gives_up, promotable
from pipeline_lib.tuning.space import Space, Value, default_point
from pipeline_lib.tuning.study import Entry, Study
from pipeline_lib.tuning.trial import Job, Reading, read_rung
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.services import Tracker
from pipeline_lib.workspace.stage import StageRun

OVERRUN = 1.2  # nothing new starts when the search would take more than this many times its share
Running = Mapping[int, int]  # number of a trial at work -> bytes that it needs
MOST_REFUSED = 3  # points refused by arithmetic, for each trial that is wanted: then the space holds too little that may run


@dataclass
class Search:
    """A search at work.

    Args:
        run: the stage run: services, events, progress.
        study: where it is recorded.
        space: what is searched.
        setting: what all trials share.
        trials: wanted.
        seconds: for the whole search; 0: no limit.
        parallel: trials side by side.
        warm: points of past searches, tried right after the default.
        values_of: the objectives' values of a trial, less is better.
    """

    run: StageRun
    study: Study
    space: Space
    setting: Setting
    trials: int
    seconds: float
    parallel: int
    warm: Sequence[dict[str, Value]]
    values_of: Callable[[Trial, Reading], list[float]]
    own_seconds: float = 0.0  # beside the jobs: asking, storing, tracking, a job's task; of all workers together
    _tracked: dict[int, Tracker] = field(default_factory=dict)
    _cut: bool = False

    def explore(self) -> None:
        """Until all wanted trials have ended.

        Raises:
            StoppedError: a clean stop was asked for.
        """
        self._work(self._next)
        for one in self._living():  # what still waits was never among the best
            self._end(one, "pruned")

    def repeat(self, numbers: Sequence[int], seeds: int) -> None:
        """Train trials again, whole, with other seeds: what is already there is not done again.

        Raises:
            StoppedError: a clean stop was asked for.
        """
        self._work(partial(self._next_repeat, [(number, seed) for seed in range(1, seeds + 1) for number in numbers]))

    def _work(self, following: Callable[[Running], Job | None]) -> None:
        """Do jobs until there are none, as many side by side as there is room for: who is ready first takes the next.

        Args:
            following: the job that may begin now, given those at work; None: none before one of them ends.
        """
        running: dict[int, int] = {}
        turn = threading.Condition()
        left = False  # somebody left with an error: so do the others

        def taken() -> Job | None:
            with turn:
                while not left:
                    begin = time.perf_counter()
                    if job := self._fitting(following(running), running):
                        running[job.number] = job.memory_bytes
                        self._progress()
                    self.own_seconds += time.perf_counter() - begin
                    if job:
                        return job
                    if not running:
                        break
                    turn.wait()
            return None

        def worker() -> None:
            nonlocal left
            try:
                while job := taken():
                    begin = time.perf_counter()
                    reading = self._do(job)
                    # What an earlier attempt trained took this one no time.
                    beside = max(time.perf_counter() - begin - reading.seconds, 0.0)
                    with turn:
                        begin = time.perf_counter()
                        del running[job.number]
                        self._record(job, reading)
                        self.own_seconds += beside + time.perf_counter() - begin
                        turn.notify_all()
            except BaseException:
                left = True
                raise
            finally:
                with turn:
                    turn.notify_all()

        if self.parallel == 1:
            worker()
            return
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="trial") as pool:
            for done in [pool.submit(copy_context().run, worker) for _ in range(self.parallel)]:
                done.result()

    def _fitting(self, job: Job | None, running: Running) -> Job | None:
        """A job, unless those at work leave no memory for it."""
        room = job is None or not running or sum(running.values()) + job.memory_bytes <= self.setting.memory_limit
        return job if room else None

    def _next_repeat(self, wanted: Sequence[tuple[int, int]], running: Running) -> Job | None:
        known = {(one["notes"]["seed_of"], one["notes"]["seed"]): one for one in self._repeats()}
        for number, seed in wanted:
            one = known.get((number, seed))
            if one is None:
                if self._too_long():
                    return None
                one = self.study.ask("repeat", self.study.entry(number)["point"], seed_of=number, seed=seed)
            if not one["result"] and one["number"] not in running:
                return self._job(one, self.setting.rule.rungs - 1)
        return None

    def _next(self, running: Running) -> Job | None:
        while True:
            entries = [one for one in self.study.entries() if one["kind"] != "repeat"]
            unread = [one for one in entries if not one["result"] and not one["readings"] and one["number"] not in running]
            if unread:  # asked for just now, or before a kill
                if not trial_of(unread[0]["point"], self.setting).refusal:
                    return self._job(unread[0], self._first(unread[0]))
                self._refuse(unread[0])
                continue
            counted = sum(one["result"].get("state") != "refused" for one in entries)
            refused = len(entries) - counted
            new = counted < self.trials and refused < MOST_REFUSED * self.trials and not self._too_long()
            standings = [self._standing(one, one["number"] in running) for one in entries]
            ready = promotable(standings, self.setting.rule, closing=not new and not running)
            if ready is not None:
                return self._job(self.study.entry(ready.number), ready.at + 1)
            if not new:
                return None
            self._ask(entries)

    def _first(self, one: Entry) -> int:
        """Brackets are for what the sampler proposes: the default and past points are read from the first rung on."""
        return self.setting.rule.first(one["number"] if one["kind"] == "sampled" else 0)

    def _standing(self, one: Entry, running: bool = False) -> Standing:
        readings = {r["rung"]: math.inf if r["dev_loss"] is None else r["dev_loss"] for r in one["readings"]}
        return Standing(
            one["number"], readings, {r["rung"]: r["parts"] for r in one["readings"]}, running=running or bool(one["result"]),
            protected=one["kind"] == "baseline", bracket=self._first(one),
        )  # fmt: skip

    def _ask(self, entries: Sequence[Entry]) -> None:
        points = [one["point"] for one in entries]
        if not any(one["kind"] == "baseline" for one in entries):
            self.study.ask("baseline", default_point(self.space))
        elif warm := next((point for point in self.warm if point not in points), None):
            self.study.ask("warm", warm)
        else:
            self.study.ask()

    def _job(self, one: Entry, rung: int) -> Job:
        trial = trial_of(one["point"], self.setting)
        job = job_of(one["number"], rung, trial, self.setting, seed=int(one["notes"].get("seed", 0)))
        if one["number"] not in self._tracked:
            tracker = self.run.services.tracker.child(f"trial-{one['number']}", tags={"millrace.kind": "trial"})
            named = {f"{name}_factor" if isinstance(v, float) else name: v for name, v in one["point"].items()}
            tracker.params(
                {**trial.values, **named, "kind": one["kind"], "steps": trial.rungs[-1].steps, "seed": job.seed,
                 "batch_sequences": trial.batch_sequences}
            )  # fmt: skip
            self._tracked[one["number"]] = tracker
        return job

    def _do(self, job: Job) -> Reading:
        """Train. What a killed attempt has trained is taken as it is.

        Raises:
            StoppedError: a clean stop was asked for.
        """
        should_stop = self.run.services.should_stop
        name = f"trial {job.number}, {job.rungs[job.rung].steps} steps"
        reading = None if should_stop() else self.run.services.task(name, partial(read_rung, job, should_stop))
        if reading is None or reading.stopped:
            raise StoppedError("stopped as asked", where="stage tune", fix="run again: the search continues where it stood")
        return reading

    def _record(self, job: Job, told: Reading) -> None:
        """Store a reading, and decide what it means for the trial."""
        number, reading = job.number, replace(told, rung=told.rung + self.setting.rule.rungs - len(job.rungs))
        self.study.read(number, reading)
        one, tracker = self.study.entry(number), self._tracked[number]
        for step, loss in reading.curve:
            tracker.metrics({"dev_loss": loss}, step=step)
        if reading.dev_loss is None:
            self._end(one, "failed", error=reading.error)
        elif reading.rung == self.setting.rule.rungs - 1:
            self._end(one, "complete", self.values_of(trial_of(one["point"], self.setting), reading))
        elif one["kind"] != "repeat":
            entries = [other for other in self.study.entries() if other["kind"] != "repeat"]
            standings = {other["number"]: self._standing(other) for other in entries}
            if gives_up(standings[number], list(standings.values()), self.setting.rule):
                self._end(one, "pruned")

    def _end(self, one: Entry, state: str, values: Sequence[float] = (), error: str = "") -> None:
        number, readings = one["number"], one["readings"]
        losses = [reading["dev_loss"] for reading in readings if reading["dev_loss"] is not None]
        seconds = round(math.fsum(reading["seconds"] for reading in readings), 3)
        tracker = self._tracked.get(number) or self.run.services.tracker.child(f"trial-{number}", tags={"millrace.kind": "trial"})
        tracker.metrics({"seconds": seconds}, step=max((reading["steps"] for reading in readings), default=0))
        tracker.tags({"millrace.state": state, **({"millrace.error": error} if error else {})})
        tracker.end("FAILED" if state == "failed" else "FINISHED")
        self._tracked.pop(number, None)
        curve = sorted((step, loss) for reading in readings for step, loss in reading["curve"])
        self.study.end(
            number, state, values, error=error, dev_loss=losses[-1] if losses and state != "failed" else None, seconds=seconds,
            steps=max((reading["steps"] for reading in readings), default=0),
            tokens=max((reading["tokens"] for reading in readings), default=0),
            spent_tokens=sum(reading["spent_tokens"] for reading in readings), curve=curve,
        )  # fmt: skip
        remove_tree(self.setting.folder / f"trial-{number}")

    def _refuse(self, one: Entry) -> None:
        self._end(one, "refused", error=trial_of(one["point"], self.setting).refusal)

    def _living(self) -> list[Entry]:
        return [one for one in self.study.entries() if not one["result"] and one["kind"] != "repeat"]

    def _repeats(self) -> list[Entry]:
        return [one for one in self.study.entries() if one["kind"] == "repeat"]

    def _too_long(self) -> bool:
        if not self.seconds:
            return False
        entries = self.study.entries()
        took = [math.fsum(reading["seconds"] for reading in one["readings"]) for one in entries if one["readings"]]
        spent = math.fsum(took) / self.parallel
        if not took or spent + math.fsum(took) / len(took) <= OVERRUN * self.seconds:
            return False
        if not self._cut:
            self._cut = True
            self.run.event(
                "search_cut", trials=len(took), wanted=self.trials, seconds=round(spent, 1), share=round(self.seconds, 1)
            )
        return True

    def _progress(self) -> None:
        entries = self.study.entries()
        done = [one["result"]["dev_loss"] for one in entries if one["result"].get("state") == "complete"]
        over = sum(bool(one["result"]) and one["result"]["state"] != "refused" and one["kind"] != "repeat" for one in entries)
        self.run.progress(over, self.trials, "trials", f"best dev loss {min(done):.3f}" if done else "")
