"""Models that a workspace trained: the run that made one, and what a run made."""

from __future__ import annotations

from pathlib import Path

from flows.api.results import Training, finite
from pipeline_lib.errors import NotFoundError
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace


def run_of_model(workspace: Workspace, model: Path | str) -> RunRecord:
    """The run that made a model.

    Args:
        workspace: where.
        model: a run's id, `latest` (the newest run that trained), or the folder of a model.

    Raises:
        NotFoundError: no run of this workspace made it.
    """
    book, text = RunBook(workspace.runs_folder), str(model)
    record: RunRecord | None
    if text == "latest":
        record = next((one for one in reversed(list(book.all())) if one.ref("train")), None)
    elif "/" not in text:
        record = book.load(text)
    else:
        folder = Path(text).expanduser().resolve()
        made = [(one, ref) for one in book.all() if (ref := one.ref("train"))]
        homes = [(one, workspace.store.place(ref.key, "manifest.json").resolve().parent) for one, ref in made]
        record = next((one for one, home in reversed(homes) if folder.is_relative_to(home)), None)
    if record is None or record.ref("train") is None:
        raise NotFoundError(
            f"{text!r} is no model of this workspace", where=str(workspace.root),
            fix="name a run, or `Training.model_path`; train on one from elsewhere: model_config={'start': FOLDER}",
        )  # fmt: skip
    return record


def made_by(workspace: Workspace, record: RunRecord, job: str) -> Training:
    """What a run of a training made, as far as it came."""
    trained, scored = record.ref("train"), record.ref("validate")
    scores: dict[str, float] = {}
    if scored:
        told = workspace.artifact(scored.key).details["scores"]
        scores = {name: float(score["value"]) for name, score in told.items() if "/" not in name}
    path, loss = "", None
    if trained:
        artifact = workspace.artifact(trained.key)
        path, loss = str(artifact.files("model")[0].parent), finite(artifact.details.get("dev_loss"))
    return Training(record.run_id, record.report, id=job, state=record.outcome, model_path=path, dev_loss=loss, scores=scores)
