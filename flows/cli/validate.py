"""`millrace validate show | compare`: a model's answers item by item, and what it has forgotten of what another one knew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, RunId, command, group, home
from pipeline_lib.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

Suite = Annotated[str, typer.Option("--suite", metavar="SUITE", help="Only this suite.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Items at most.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    validate = group(app, "validate", "Look at scores item by item.", example="millrace validate show latest", panel=LOOK)
    command(validate, "show", example="millrace validate show latest --suite earth --wrong")(show_scores)
    command(validate, "compare", example="millrace validate compare RUN OTHER")(compare)
    command(validate, "landscape", example="millrace validate landscape latest --directions 2")(landscape)


def show_scores(
    run: RunId = "latest",
    *,
    suite: Suite = "",
    wrong: Annotated[bool, typer.Option("--wrong", help="The items answered wrongly, surest first.")] = False,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Show a run's scores with their intervals, or with --wrong the items it answered wrongly."""
    from pipeline_lib.validation.compare import wrong_answers
    from pipeline_lib.validation.intervals import spelled

    workspace = home()
    record = _record(workspace, run)
    validated = _output(workspace, record, "validate")
    if wrong:
        rows = wrong_answers(validated, _output(workspace, record, "suites"), suite=suite, limit=limit)
        _items(rows, as_json=as_json)
        return
    scores = {
        name: score
        for name, score in validated.details["scores"].items()
        if not suite or name == suite or name.startswith(suite + "/")
    }
    if not scores:
        raise NotFoundError(f"suite {suite!r} was not scored", fix=f"one of: {', '.join(_suites(validated))}")
    if as_json:
        show.json_out(scores)
        return
    cells: list[list[show.Cell]] = [
        [
            name,
            round(s["value"], 4),
            round(s["error"], 4) if "error" in s else "",
            spelled(s),
            s["chance"],
            s.get("majority", ""),
            s["n"],
        ]
        for name, s in scores.items()
    ]
    show.table(["score", "value", "error", "95 % interval", "chance", "majority", "items"], cells)
    for lost in validated.details["not_scored"]:
        items = f"{lost['items']} items, " if "items" in lost else ""
        show.say(f"not scored: {lost['suite']}: {items}{lost['reason']}")


def compare(
    run: RunId,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The run to compare with: the earlier one.")],
    *,
    suite: Suite = "",
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="task, domain, source, fact or item.")] = "task",
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Compare two models: change by task with its interval, losses first, then the items that were forgotten."""
    from pipeline_lib.validation.compare import By, forgetting, regressions

    workspace = home()
    one, two = _record(workspace, run), _record(workspace, other)
    mine, before = _output(workspace, one, "validate"), _output(workspace, two, "validate")
    if by not in get_args(By):
        raise ConfigError(f"--by {by!r} is not known", fix=f"one of: {', '.join(get_args(By))}")
    suites, documents = _output(workspace, one, "suites"), _output(workspace, one, "ingest").files("documents")
    grouped = forgetting(mine, before, by=cast("By", by), suites=suites, documents=documents)
    tasks = [row for row in grouped if not suite or row["suite"] == suite][
        : None if by in {"task", "domain", "source"} else limit
    ]
    items = regressions(mine, before, suites, suite=suite, limit=limit)
    if as_json:
        show.json_out({"tasks": tasks, "forgotten": items})
        return
    cells: list[list[show.Cell]] = [
        [
            row["suite"], row[by], round(row["before"], 4), round(row["now"], 4),
            f"{row['change']['low']:+z.4f} to {row['change']['high']:+z.4f}", round(row["detectable"], 4),
            row["lost"], row["won"], row["items"],
        ]
        for row in tasks
    ]  # fmt: skip
    change = ("95 % interval of the change", "detectable")
    show.table(["suite", by, two.run_id, one.run_id, *change, "lost", "won", "items"], cells)
    show.say()
    _items(items, as_json=False)


def landscape(
    run: RunId = "latest",
    *,
    directions: Annotated[int, typer.Option("--directions", min=1, help="Random directions.")] = 1,
    radius: Annotated[float, typer.Option("--radius", min=0, help="Farthest distance, in lengths of the weights.")] = 0.5,
    points: Annotated[int, typer.Option("--points", min=2, help="Distances on each side of the model.")] = 4,
    tokens: Annotated[int, typer.Option("--tokens", min=100, help="Test text that is scored at each point.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Walk from a model's weights in random, filter-normalised directions: bits per byte of test text at each distance.

    The run's report shows the last walk as a picture.
    """
    from pipeline_lib.metrics import training_log
    from pipeline_lib.reporting.landscape import keep_landscape
    from pipeline_lib.reporting.report import write_report
    from pipeline_lib.stages import ORDER
    from pipeline_lib.validation.landscape import sections
    from pipeline_lib.validation.language import test_texts
    from pipeline_lib.validation.scorer import Scorer

    workspace = home()
    record = _record(workspace, run)
    texts = test_texts(
        _output(workspace, record, "ingest").files("documents"), _output(workspace, record, "select").files("selection")
    )
    scorer = Scorer(_output(workspace, record, "train").files("model")[0].parent, batch_tokens=1024)
    distances = [radius * step / points for step in range(-points, points + 1)]
    seed = int(record.config.get("seed", 0))
    rows = sections(scorer, texts, directions=directions, distances=distances, tokens=tokens, seed=seed)
    keep_landscape(workspace, record.run_id, rows)
    page = write_report(workspace, record, ORDER, training_log)
    if as_json:
        show.json_out(rows)
        return
    show.table(
        ["direction", "distance", "bits per byte"],
        [[r["direction"], round(r["distance"], 4), round(r["bits_per_byte"], 4)] for r in rows],
    )
    show.say(f"drawn in {show.path(page)}")


def _items(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        show.json_out(rows)
        return
    if not rows:
        show.say("no such items")
    for row in rows:
        show.say(f"{row['suite']}/{row['task']} {row['item']}  {row['source'] or ''}")
        show.say(f"  {row['prompt']}")
        show.say(f"    right:  {row['right']}")
        show.say(f"    chosen: {row['chosen'] or 'none, two are alike'} ({_certainty(row['confidence'])} sure)")


def _certainty(share: float) -> str:
    """A share below one is never shown as all of it."""
    return "> 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def _record(workspace: Workspace, run: str) -> RunRecord:
    from pipeline_lib.workspace.runs import RunBook

    return RunBook(workspace.runs_folder).load(run)


def _output(workspace: Workspace, record: RunRecord, stage: str) -> Artifact:
    ref = record.ref(stage)
    if ref is None:
        raise NotFoundError(
            f"run {record.run_id} did not come as far as the stage {stage}", fix=f"`millrace show {record.run_id}` says why"
        )
    return workspace.store.artifact(ref.key)


def _suites(validated: Artifact) -> list[str]:
    return sorted({name.partition("/")[0] for name in validated.details["scores"]})
