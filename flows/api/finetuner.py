"""One call from data to a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.api.event_loop import wait_for
from flows.api.optimizer import LLMTrainingOptimizer
from flows.api.results import Training
from flows.api.settings import STRATEGIES
from flows.api.words import known
from pipeline_lib.config.guided import BYTES_PER_TOKEN, look_at
from pipeline_lib.config.presets import amount_for, built_in
from pipeline_lib.metrics import training_log
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook

CONVERSATIONS = {"messages", "conversations", "prompt", "instruction", "question"}  # fields of `config.data.SourceConfig.records`


class FineTuner:
    """One call from data to a model: the preset names the quality target, family and size follow from model and data.

    Args of `__init__`:
        data_path: folder or file with text or instruction records; "" or `machine`: the text that is on this machine.
        model: `auto` (the champion of the workspace where there is one, else from scratch), a family (llama, mamba …), or a
            folder with a checkpoint.
        preset: highspeed, quality or bestaccuracy.
        workspace: as in `LLMTrainingOptimizer`.
        settings: further settings by their dotted names.

    Raises:
        ConfigError: the preset or model is unknown (the nearest is told), or there is no data.
    """

    def __init__(
        self,
        data_path: Path | str = "",
        model: str | Path = "auto",
        preset: str = "quality",
        *,
        workspace: Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        goal = known(preset, STRATEGIES.values(), "preset")
        data = "" if str(data_path) in {"", "machine"} else str(Path(data_path).expanduser().absolute())
        tokens = look_at(data) / BYTES_PER_TOKEN
        self._optimizer = LLMTrainingOptimizer(
            optimization_strategy=next(name for name, value in STRATEGIES.items() if value == goal),
            workspace=workspace,
            settings={"name": "finetuner", **(settings or {})},
            goal=f"fine-tune on {data or 'this machine'}",
        )
        self.workspace, self.store = self._optimizer.workspace, self._optimizer.store
        self._optimizer.size = amount_for(tokens)
        self._optimizer.read_from([data or "machine"], **({"records": _records_in(data)} if data else {}))
        self._choose(str(model))

    def _choose(self, model: str) -> None:
        families = sorted({one.family for one in built_in().values()})
        folder = Path(model).expanduser().absolute()
        if model == "auto":
            if read_champion(self.workspace).get("champion"):
                self._optimizer.start_from("champion")
        elif model in families:
            self._optimizer.family = model
        elif folder.is_dir():
            self._optimizer.start_from(str(folder))
        else:
            known(model, ["auto", *families], "model")

    def train(self) -> Training:
        """Data, search, training, validation; returns when it is over. Works beside a running event loop, too."""
        return wait_for(self.train_async())

    async def train_async(self) -> Training:
        """`train`, to be awaited."""
        started = await self._optimizer.train()
        return await self._optimizer.wait(started.id)

    def resume(self, checkpoint: str) -> Training:
        """Go on from `RUN@STEP` in a run of its own, or with a run that stopped."""
        return wait_for(self.resume_async(checkpoint))

    async def resume_async(self, checkpoint: str) -> Training:
        """`resume`, to be awaited."""
        started = await self._optimizer.train(from_checkpoint=checkpoint)
        return await self._optimizer.wait(started.id)

    def analyze(self, run: str = "latest") -> dict[str, Any]:
        """What the report of a run finds: troubles and advice with their evidence, numbers by subject, what recovery cost.

        Raises:
            NotFoundError: there is no such run.
        """
        from pipeline_lib.reporting.gather import gather
        from pipeline_lib.stages import ORDER

        record = RunBook(self.workspace.runs_folder).load(run)
        found = gather(self.workspace, record, ORDER, training_log).analysis.to_json()
        near = self.store.recall(record.features, goal=record.goal, k=4)
        like = [one.to_json() for one in near if one.run_id != record.run_id]
        return {"run_id": record.run_id, "outcome": record.outcome, "report": record.report, **found, "similar_runs": like[:3]}


def _records_in(data: str) -> str:
    """`instruct` where the first line of the first JSONL file is a conversation or a prompt with its answer, else `text`."""
    path = Path(data)
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    for file in files[:1]:
        if file.suffix == ".jsonl":
            with file.open(encoding="utf-8", errors="replace") as lines, contextlib.suppress(ValueError):
                first = json.loads(lines.readline(1 << 20))
                if isinstance(first, dict) and first.keys() & CONVERSATIONS:
                    return "instruct"
    return "text"
