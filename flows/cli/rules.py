"""`millrace rules list | try`: the rules by which documents are kept, and what another one would do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, Set, command, group, home, run_with


def register(app: typer.Typer) -> None:
    """Add the commands."""
    rules = group(app, "rules", "Look at the rules of quality, and try others.", example="millrace rules list", panel=LOOK)
    command(rules, "list", example="millrace rules list")(list_rules)
    command(rules, "try", example='millrace rules try "words >= 50 AND digit_share < 0.2"')(try_out)


def list_rules(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML (default: the quickstart).")] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    as_json: Json = False,
) -> None:
    """List every rule: its set, what it needs, and the domains it decides about in this configuration."""
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.extensions import extensions, load_extensions
    from pipeline_lib.quality.rules import RULE_SETS, rule_set_names

    pipeline = load_config(config or default_pipeline(), overrides)
    load_extensions(pipeline.execution.extensions)
    used = {
        name: [domain for domain, sets in pipeline.score.rules.items() if name in rule_set_names(sets)]
        + ["(conversations)"] * (name in rule_set_names(pipeline.score.instruct_rules))
        for name in {**RULE_SETS, **extensions("rule_set")}
    }
    rows = [
        {"set": name, "rule": rule, "keeps": expression, "domains": ", ".join(used[name])}
        for name, rules in {**RULE_SETS, **extensions("rule_set")}.items()
        for rule, expression in rules.items()
    ]
    rows += [{"set": "", "rule": rule, "keeps": text, "domains": "all"} for rule, text in pipeline.score.extra_rules.items()]
    if as_json:
        show.json_out(rows)
    else:
        show.say("Domain *: any other; conversations: `records: instruct`, whatever their domain.")
        for name in dict.fromkeys(row["set"] for row in rows):
            own = [row for row in rows if row["set"] == name]
            show.say()
            show.table(
                ["rule", "keeps"],
                [[row["rule"], row["keeps"]] for row in own],
                f"{name or 'extra_rules'}: {own[0]['domains'] or 'no domain in this configuration'}",
            )


def try_out(
    expression: Annotated[str, typer.Argument(metavar="EXPRESSION", help="SQL over signals, true for a document to keep.")],
    run: Annotated[str, typer.Option(metavar="RUN", help="Run id, the beginning of one, or `latest`.")] = "latest",
    examples: Annotated[int, typer.Option(min=0, max=100, help="Documents to show from each side of the line.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.0, help="Look at no further documents after this time.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Say what a rule would keep and drop in a run, with the documents nearest to the line. Changes nothing.

    Example texts are redacted and cut.
    """
    from pipeline_lib.errors import NotFoundError
    from pipeline_lib.quality.tryout import try_rule

    workspace = home()
    record = run_with(workspace, run, "score")
    ingest, score = record.ref("ingest"), record.ref("score")
    if ingest is None or score is None:
        raise NotFoundError(f"run {record.run_id} has no scored documents", fix="let it run: `millrace run --until score`")
    found = try_rule(
        workspace.artifact(ingest.key), workspace.artifact(score.key), expression, examples=examples, seconds=seconds
    )
    if as_json:
        show.json_out({"run_id": record.run_id, **asdict(found)})
        return
    if found.documents < found.of:
        show.warn(f"only the first {found.documents:,} of {found.of:,} documents were looked at (--seconds)")
    show.table(
        ["domain", "kept", "dropped", "dropped by today's rules", "dropped by this one only"],
        [list(row.values()) for row in found.domains],
        f"What {found.expression} would do",
    )
    for kept, title in ((True, "Kept, nearest to the line"), (False, "Dropped, nearest to the line")):
        if side := [example for example in found.examples if example.kept == kept]:
            show.say()
            show.table(["document", "domain", found.signal, "text"], [[e.doc_id, e.domain, e.value, e.text] for e in side], title)
