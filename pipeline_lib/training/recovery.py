"""Acts on what goes wrong, by the policy table: skips a step, rolls back, makes micro-batches smaller, or gives up and says why.

Rolling back is what a kill and a resume are: what was decided is written to a small file, checkpoints of the abandoned course go,
and the next attempt begins at the checkpoint before it. Everything decided follows from losses and norms, which a resumed
training sees again, so a killed training recovers in the same way as one that was not killed.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from transformers import TrainerCallback

from pipeline_lib.config.recovery import LADDER_ENDS, Policy
from pipeline_lib.errors import DamagedError
from pipeline_lib.training.adjustments import Adjustment, Adjustments
from pipeline_lib.training.callbacks import DevLoss
from pipeline_lib.training.checkpoints import LEAST_KEPT, DiskLowError, checkpoint_at, committed, quarantined, record_of
from pipeline_lib.training.failure import give_up, tell_failure
from pipeline_lib.training.forks import NONE
from pipeline_lib.training.loop import Session
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.policies import Ledger
from pipeline_lib.training.saving import read_part
from pipeline_lib.training.signals import DIVERGENCE_SHARE, DIVERGENCE_WINDOW, Signal
from pipeline_lib.workspace.files import read_json, remove_tree, write_json

# Where the trouble began before it was seen: a mean over a window rises some steps after the losses do.
BEGAN_BEFORE = {"divergence": DIVERGENCE_WINDOW}
WORSE_SHARE = DIVERGENCE_SHARE / 2  # of the dev loss: half of what the training loss has risen by at least
LEAST_TRIAL = DIVERGENCE_WINDOW  # steps at the lower rate, however few were undone: as many as divergence needs to show
LOWER_RATE = 3.0  # what a person should try: about the grid of a learning-rate search


class RollBack(Exception):  # noqa: N818 - no error: the attempt ends, and another one begins further back
    """Raised inside a training step's end; the next attempt goes on from an earlier checkpoint."""


class Memory:
    """What recovery knows beyond an attempt: `recovery.json`, ahead of the checkpoints where a roll-back was decided since."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """The state that was last written, or None."""
        try:
            state: dict[str, Any] = read_json(self.path)
        except FileNotFoundError:
            return None
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace it, synced."""
        write_json(self.path, state)

    def settle(self, checkpoints: Path) -> None:
        """Remove the checkpoints of courses that were abandoned: those that do not know of a roll-back to a step before them."""
        if not (state := self.read()):
            return
        for folder in committed(checkpoints):
            record = record_of(folder)
            if not record:  # damaged: whoever looks for the newest one says so
                continue
            known, step = record["notes"].get("recovery", {}).get("adjustments", []), int(record["step"])
            if _before(known, step) != _before(state["adjustments"], step):
                remove_tree(folder)


def _before(changes: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [change for change in changes if int(change["step"]) < step]


class Recovery(TrainerCallback):
    """Called right after the monitor, before anything is evaluated or saved.

    Args of `__init__`:
        session: what is trained; its limits, its places in the data and its rates are set here.
        monitor: whose signals are acted on.
        dev_loss: asked whether a divergence is one.
        table: the policies.
        memory: see `Memory`; settled already.
        checkpoints: the folder of checkpoints.
        quarantine: where damaged ones of them are.
        wait: until none of them is under way.
        notes: what the checkpoint that the session was restored from keeps of this; None: a beginning.
        cures: what the plan knows of runs like this one (`planning.cures`): by signal {"begin", "passed_over", "run"}.
        event: told of every action, with evidence and cost.
    """

    def __init__(
        self,
        session: Session,
        monitor: Monitor,
        dev_loss: DevLoss,
        *,
        table: tuple[Policy, ...],
        memory: Memory,
        checkpoints: Path,
        quarantine: Path,
        wait: Callable[[], None],
        notes: Mapping[str, Any] | None,
        event: Callable[..., None],
        cures: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.session, self.monitor, self.dev_loss, self.memory, self.event = session, monitor, dev_loss, memory, event
        self.checkpoints, self.quarantine, self.wait = checkpoints, quarantine, wait
        self.cures = cures or {}
        self.ledger = Ledger(table, {signal: cure["begin"] for signal, cure in self.cures.items()})
        self.decays = [float(group.get("weight_decay", 0.0)) for group in session.optimizer.param_groups]
        if notes:
            self._restore(notes)
        if known := memory.read():
            self._remember(known)
        self._adjust()
        session.relieve = self.relieve

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        limit = float(self.session.loss_limit)
        return {
            "adjustments": self.session.adjustments.to_json(), "ledger": self.ledger.state(), "parts": self.session.parts,
            "loss_limit": limit if math.isfinite(limit) else None,
        }  # fmt: skip

    def _restore(self, notes: Mapping[str, Any]) -> None:
        self.session.adjustments = Adjustments(Adjustment(**change) for change in notes["adjustments"])
        self.ledger.restore(notes["ledger"])
        self.session.parts = int(notes["parts"])
        if notes["loss_limit"] is not None:
            self.session.loss_limit.fill_(notes["loss_limit"])

    def _remember(self, known: Mapping[str, Any]) -> None:
        """What was decided since the checkpoint: everything but skips, which happen again."""
        self.session.adjustments = Adjustments(Adjustment(**change) for change in known["adjustments"])
        skips = {p.name: self.ledger.used.get(p.name, []) for p in self.ledger.table if p.action == "skip_step"}
        self.ledger.restore(known["ledger"])
        self.ledger.used |= skips
        self.session.parts = int(known["parts"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rates and decay follow the adjustments (one may lie ahead, where an older checkpoint had to be used)."""
        if self.session.adjustments.made:
            self._adjust()

    def _adjust(self) -> None:
        session = self.session
        if session.adjustments.made:
            session.set_rate("recovery", session.adjustments.rate(session.step))
        for group, decay in zip(session.optimizer.param_groups, self.decays, strict=True):
            if "weight_decay" in group:
                group["weight_decay"] = decay * session.adjustments.decay(session.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Act on the step just done.

        Raises:
            RollBack: the training goes on further back.
            StageFailedError: nothing helped.
        """
        self.look()

    def look(self) -> None:
        """Act on what the monitor has seen since the last look; see `on_step_end`."""
        for signal in self.monitor.take():
            self._act(signal)
        armed = (policy := self.ledger.next("loss_spike", self.session.step)) is not None and policy.action == "skip_step"
        self.session.loss_limit.fill_(self.monitor.losses.limit if armed else math.inf)

    def _act(self, signal: Signal) -> None:
        if signal.signal == "divergence" and not self._confirmed(signal):
            return
        policy = self.ledger.take(signal.signal, signal.step)
        if policy is None or policy.action == "go_on":
            return
        if policy.action == "skip_step":
            if signal.signal == "non_finite" or signal.evidence.get("withheld"):
                self._tell(policy, signal, tokens=self.monitor.tokens_per_step)
        elif policy.action == "roll_back":
            self._roll_back(policy, signal)
        else:
            self.give_up(signal)

    def _tell(self, policy: Policy, signal: Signal, **cost: Any) -> None:
        self.event(
            "recovery", step=signal.step, policy=policy.name, action=policy.action, signal=signal.signal,
            evidence=dict(signal.evidence), cost=cost, **self._why(policy),
        )  # fmt: skip

    def _why(self, policy: Policy) -> dict[str, str]:
        """Where the ladder begins further up for what helped before, which run that was."""
        cure = self.cures.get(policy.signal)
        if not cure or cure["begin"] != policy.name:
            return {}
        rate = f", rate × {policy.rate:g}" if policy.rate != 1 else ""
        rest = f"; {', '.join(cure['passed_over'])} did not help there"
        return {"why": f"{policy.name}{rate}, as in run {cure['run']}, where it cured the same{rest}"}

    def _confirmed(self, signal: Signal) -> bool:
        """Whether the dev loss is worse now, by `WORSE_SHARE`, than at the checkpoint that a roll-back would lead to.

        The training loss also rises where data becomes harder, or what is read again was read long ago, and overfitting raises
        the dev loss slowly; to go back would only undo what was learned since. Where the plan evaluates nothing, the training
        loss is all that is known.
        """
        if not self.session.plan.evaluate_every:
            return True
        to = self._checkpoint_before(signal)
        before, now = self._dev_loss_at(to), self.dev_loss.now()
        limit = (1 + WORSE_SHARE) * before
        if now <= limit:
            self.event("divergence_not_confirmed", step=signal.step, dev_loss=now, dev_loss_before=before, at_step=to)
        return not now <= limit

    def _dev_loss_at(self, step: int) -> float:
        """Of a checkpoint: as it was evaluated then, or else evaluated now, for an older one's would say too much; −inf where
        nobody can tell."""
        forked = not step and self.session.config.parent != NONE  # its beginning is another training's checkpoint
        if not forked and (known := self.dev_loss.at(step)) is not None:
            return known
        try:
            return self.dev_loss.of(read_part(checkpoint_at(self.checkpoints / f"step-{step:08d}"), "model.safetensors"))
        except (DamagedError, OSError):  # going back will find that, too
            return -math.inf

    def _checkpoint_before(self, signal: Signal) -> int:
        """Step of the newest checkpoint from before the trouble began."""
        with contextlib.suppress(DiskLowError):  # the checkpoint under way is not needed for going back
            self.wait()
        latest = signal.step - 1 - BEGAN_BEFORE.get(signal.signal, 0)
        return int(self.session.world.first(lambda: _newest(self.checkpoints, latest)))

    def _roll_back(self, policy: Policy, signal: Signal) -> None:
        session = self.session
        to = self._checkpoint_before(signal)
        lost = session.step - to
        regained = 2 * max(lost, LEAST_TRIAL) if policy.regains else 0
        session.adjustments.add(Adjustment(to, lost, policy.rate, policy.decay, regained))
        self.ledger.rolled_back(to, policy)
        self._write()
        seconds = lost * self.monitor.tokens_per_step / max(self.monitor.tokens_per_second, 1e-9)
        self._tell(
            policy, signal, to_step=to, steps=lost, seconds=round(seconds, 3),
            sequences_passed_over=lost * session.plan.batch_sequences, rate=session.adjustments.rate(to),
            rate_regained_at=to + regained if regained else None, weight_decay=session.adjustments.decay(to),
        )  # fmt: skip
        if session.world.main:
            self.memory.settle(self.checkpoints)
        session.world.wait()
        raise RollBack(f"{signal.signal} at step {signal.step}: back to step {to}")

    def _write(self) -> None:
        if self.session.world.main:
            self.memory.write(self.state())

    def make_room(self, error: DiskLowError) -> None:
        """Remove what a training can do without, so that the next checkpoint fits: all but the newest ones, and damaged ones.

        Raises:
            DiskLowError: the one that is given, when nothing is left to remove: the training stops cleanly.
        """
        signal = Signal("disk_low", self.session.step, {"error": error.what})
        before = shutil.disk_usage(self.checkpoints).free
        shared = self.session.parallel.sharded  # then saving is the work of all, and cannot be done again by one
        policy = None if shared else self.ledger.take("disk_low", signal.step)
        removed = self._prune() if policy and policy.action == "prune" else []
        if not policy or not removed:
            tell_failure(self.event, signal, tried=self.ledger.tried(signal.signal), fix=error.fix)
            raise error
        self._tell(policy, signal, removed=removed, freed_bytes=max(shutil.disk_usage(self.checkpoints).free - before, 0))

    def _prune(self) -> list[str]:
        """Names of what was removed."""
        doomed = [*committed(self.checkpoints)[:-LEAST_KEPT], *quarantined(self.quarantine, self.checkpoints)]
        for folder in doomed:
            remove_tree(folder)
        return [folder.name for folder in doomed]

    def relieve(self, error: Exception) -> None:
        """Halve the micro-batch, now and from here on.

        Raises:
            StageFailedError: it is a single sequence already.
        """
        session = self.session
        size = max(session.plan.micro_batch // session.parts, 1)
        evidence = {"error": str(error).splitlines()[0][:200], "micro_batch": size}
        signal = Signal("out_of_memory", session.step + 1, evidence)
        policy = self.ledger.take("out_of_memory", signal.step) if size > 1 else None
        if policy is None or policy.action in LADDER_ENDS:
            self.give_up(signal)
        session.parts *= 2
        self.memory.write(self.state())
        self._tell(policy, signal, micro_batch=max(size // 2, 1), repeated="the forward and backward passes of one step")

    def give_up(self, signal: Signal) -> NoReturn:
        """End with a failure report.

        Raises:
            StageFailedError: always.
        """
        recent = ", ".join(f"{loss:.3f}" for loss in list(self.monitor.losses.recent)[-5:]) or "none"
        known = {"learning rate": f"{self.session.learning_rate:.3g}", "last good losses": recent}
        seen = Signal(signal.signal, signal.step, {**signal.evidence, **known})
        give_up(self.event, seen, tried=self.ledger.tried(signal.signal), fix=_advice(signal.signal, self.session))


def _newest(checkpoints: Path, latest: int) -> int:
    """The last step, at most `latest`, at which a checkpoint was committed; 0: the beginning."""
    steps = [int(record["step"]) for folder in committed(checkpoints) if (record := record_of(folder))]
    return max((step for step in steps if step <= latest), default=0)


def _advice(signal: str, session: Session) -> str:
    rate = session.plan.learning_rate / LOWER_RATE
    if signal == "out_of_memory":
        return "a shorter pack.sequence_length, a smaller model, or train.activation_checkpointing=true needs less memory"
    look = "`millrace trace RUN --step N` shows what the steps read"
    if signal == "non_finite":
        return (
            f"lower train.learning_rate (try {rate:.1g}) or train.max_grad_norm; at the very start, train.precision=fp32; {look}"
        )
    return f"lower train.learning_rate (try {rate:.1g}) or train.max_grad_norm, raise plan.warmup_share; {look}"
