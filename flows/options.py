"""What a run is asked beside its configuration: which stages, what again, on whose data. The second part of the form."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.stages import STAGES

StageName = Literal[
    "suites", "ingest", "score", "dedup", "split", "select", "pack", "fill_gaps", "calibrate", "tune", "plan", "train", "validate"
]
AnyStage = Literal[
    "", "suites", "ingest", "score", "dedup", "split", "select", "pack", "fill_gaps", "calibrate", "tune", "plan", "train", "validate"
]  # fmt: skip


class RunOptions(Section):
    """Options of a run. By default everything runs, and what is finished and intact is reused."""

    parent: str = setting("", "Run that this one repeats or continues; empty: none (with from_stage or only: the latest)")
    from_stage: AnyStage = setting("", "Start here; earlier stages are taken from the parent run as they are")
    until: AnyStage = setting("", "Stop after this stage")
    only: AnyStage = setting("", "Run this stage alone, on the parent run's data")
    force: list[StageName] = setting(list, "Make these stages again, even where their artifacts are finished and intact")
    recorded: str = setting("", "Take calibrate, tune and plan from this run, and follow its plan to the step instead of the clock")
    wait: bool = setting(True, "Wait for another run that makes the same artifact, instead of leaving")

    def first_and_last(self) -> tuple[int, int]:
        """Positions of the first and last stage in the table of stages."""
        names = [stage.name for stage in STAGES]
        first = names.index(self.only or self.from_stage) if self.only or self.from_stage else 0
        last = names.index(self.only or self.until) if self.only or self.until else len(names) - 1
        return first, last

    def wanted(self) -> list[str]:
        """Names of the stages to run, in order; empty when the choice contradicts itself."""
        first, last = self.first_and_last()
        return [stage.name for stage in STAGES[first : last + 1] if not (self.recorded and stage.kind == "recorded")]

    def borrowed(self) -> list[str]:
        """Names of the stages taken from the parent run."""
        return [stage.name for stage in STAGES[: self.first_and_last()[0]]]
