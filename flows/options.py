"""What a run is asked beside its configuration: which stages, what again, on whose data. The second part of the form."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.run import Selection, selection

StageName = Literal[
    "suites", "ingest", "score", "dedup", "split", "select", "pack", "fill_gaps", "calibrate", "tune", "plan", "train", "validate"
]  # fmt: skip
AnyStage = Literal[StageName, ""]


class RunOptions(Section):
    """Options of a run. By default everything runs, and what is finished and intact is reused."""

    parent: str = setting("", "Run that this one repeats; empty: none (from_stage and only then take the newest that serves)")
    from_stage: AnyStage = setting("", "Start here; earlier stages are taken from the parent run as they are")
    until: AnyStage = setting("", "Stop after this stage")
    only: AnyStage = setting("", "Run this stage alone, on the parent run's data")
    force: list[StageName] = setting(list, "Make these stages again, even where their artifacts are finished and intact")
    resume: str = setting("", "Go on with this unfinished run: the same record, its next attempt")
    recorded: str = setting(
        "", "Take calibrate, tune and plan from this run or exported file, and follow its plan, not the clock"
    )
    wait: bool = setting(True, "Wait for another run that makes the same artifact, instead of leaving")

    def selection(self) -> Selection:
        """Which stages run, which are supplied, which are forced.

        Raises:
            ConfigError: the choice contradicts itself.
        """
        return selection(
            from_stage=self.from_stage, only=self.only, until=self.until, force=self.force, recorded=bool(self.recorded)
        )

    def forced(self) -> RunOptions:
        """The same, with every stage that runs made again."""
        return self.model_copy(update={"force": list(self.selection().stages)})
