"""What one run finds, several nights find; and who was kept once stays."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_toy import Run, document, edited, jaccard, words
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.dedup.conclude import rethreshold
from pipeline_lib.errors import ConfigError
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.resolve import reference, resolve, write_champion

ALL = ("pairs", "clusters", "decisions", "buckets")


def corpus(seed: int, bases: int = 12) -> list[dict[str, Any]]:
    """Families of near and exact duplicates, and one large family; qualities and dates at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for base in range(bases):
        text = words(rng, 40)
        for i in range(int(rng.integers(1, 5)) if base else 9):
            changed = edited(rng, text, float(rng.choice([0.0, 0.025, 0.05])))
            more = {
                "quality": float(rng.random()),
                "created": f"20{rng.integers(10, 25)}-01-01",
                "source": str(rng.choice(["x", "y"])),
            }
            rows.append(document(f"{base}.{i}", " ".join(changed), **more))
    return [rows[i] for i in rng.permutation(len(rows))]


def night(folder: Path, rows: list[dict[str, Any]], count: int, nights: int, **more: Any) -> Run:
    """A run on the first `count` nights; a night is a file."""
    return Run(folder, [row for row in rows if row["file"] < count], files=nights, until="dedup", **more)


def tables(run: Run, *names: str) -> dict[str, bytes]:
    return {name: run.artifact("dedup").file(name).read_bytes() for name in names}


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.sampled_from([3, 12, 200]))
def test_any_split_into_nights_finds_what_one_run_finds(tmp_path_factory, seed: int, nights: int, limit: int) -> None:
    tmp_path = tmp_path_factory.mktemp("nights")
    rng = np.random.default_rng(seed)
    rows = [{**row, "file": int(rng.integers(0, nights))} for row in corpus(seed)]
    settings = {"dedup": {"bucket_limit": limit, "shingle_words": 3, "threshold": 0.7}}
    verified = 0
    for count in range(1, nights + 1):
        last = night(tmp_path / "nights", rows, count, nights, **settings)
        verified += last.artifact("dedup").metrics["pairs_verified"]
    whole = night(tmp_path / "whole", rows, nights, nights, **settings)
    assert tables(last, *ALL) == tables(whole, *ALL)
    if limit > 100:
        assert verified == whole.artifact("dedup").metrics["pairs_proposed"]  # none of them twice


def test_a_vanished_file_takes_its_pairs_along(tmp_path: Path) -> None:
    rows = [{**row, "file": i % 3} for i, row in enumerate(corpus(5))]
    settings = {"dedup": {"bucket_limit": 3, "shingle_words": 3}}
    night(tmp_path / "a", rows, 3, 3, **settings)
    less = night(tmp_path / "a", rows, 2, 3, **settings)
    assert tables(less, *ALL) == tables(night(tmp_path / "b", rows, 2, 3, **settings), *ALL)


def test_order_within_a_night_does_not_matter(tmp_path: Path) -> None:
    rows = corpus(3)
    one = Run(tmp_path / "a", rows, until="dedup")
    other = Run(tmp_path / "b", rows[::-1], until="dedup", files=3)
    assert tables(one, *ALL) == tables(other, *ALL)


def test_survivors_of_earlier_nights_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    text = words(rng, 100)
    old = document("old", " ".join(text), quality=0.1, file=0)
    lost = document("lost", " ".join(edited(rng, text, 0.01)), quality=0.05, file=0)
    better = document("better", " ".join(edited(rng, text, 0.01)), quality=0.9, file=1)
    first = Run(tmp_path, [old, lost], files=2, until="dedup")
    afresh = Run(tmp_path, [old, lost, better], files=2, until="dedup")
    parent = reference(first.refs["dedup"].key, first.refs["dedup"].digest)
    second = Run(tmp_path, [old, lost, better], files=2, until="dedup", dedup={"parent": parent})

    def survivors(run: Run) -> set[str]:
        return {row["doc_id"] for row in run.rows("dedup", "clusters") if row["survivor"]}

    assert (survivors(first), survivors(afresh), survivors(second)) == ({"old"}, {"better"}, {"old"})
    assert tables(second, "pairs") == tables(afresh, "pairs")
    failed = {**old, "failed": "rule"}  # who may not be trained on does not take a place
    third = Run(tmp_path, [failed, lost, better], files=2, until="dedup", dedup={"parent": parent})
    assert survivors(third) == {"better"}


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.55, 0.75, 0.95]))
def test_rethreshold_is_a_rerun(tmp_path_factory, seed: int, threshold: float) -> None:
    tmp_path = tmp_path_factory.mktemp("rethreshold")
    rows = corpus(seed)
    setting = {"shingle_words": 3, "source_quota": 0.4, "thresholds": [threshold]}
    run = Run(tmp_path, rows, until="dedup", dedup=setting)
    again = Run(tmp_path, rows, until="dedup", dedup={**setting, "threshold": threshold, "thresholds": []})
    found = rethreshold(run.artifact("dedup"), run.artifact("ingest"), run.artifact("score"), threshold)
    for name in ("pairs", "clusters", "decisions"):
        assert getattr(found, name).to_pylist() == read_tables(again.artifact("dedup").files(name)).to_pylist()
    (counted,) = run.artifact("dedup").details["thresholds"]
    assert counted == {"threshold": threshold, **found.numbers}
    with pytest.raises(ConfigError, match="no Jaccard"):
        rethreshold(run.artifact("dedup"), run.artifact("ingest"), run.artifact("score"), 1.5)


def test_what_is_left_has_no_duplicates(tmp_path: Path) -> None:
    """Idempotent: deduplicating the survivors removes nobody."""
    rows = corpus(8)
    run = Run(tmp_path / "a", rows, until="dedup", dedup={"shingle_words": 3, "threshold": 0.8})
    dropped = {row["doc_id"] for row in run.rows("dedup", "decisions")}
    left = [row for row in rows if row["name"] not in dropped]
    assert dropped
    assert all(jaccard(a["text"], b["text"], 3) < 0.8 for i, a in enumerate(left) for b in left[:i])
    again = Run(tmp_path / "b", left, until="dedup", dedup={"shingle_words": 3, "threshold": 0.8})
    assert again.rows("dedup", "decisions") == []


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed while it indexes: what was committed is not made again, and the result is the same."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from test_dedup_nights import corpus; from curation_toy import Run\n"
        "Run(Path(sys.argv[2]), corpus(2), files=4, until='dedup')\n"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {
        **os.environ,
        "MILLRACE_FAULT": "shard.before_commit:3",
        "PYTHONPATH": os.pathsep.join([*places, str(Path.cwd())]),
    }
    killed = subprocess.run(
        [sys.executable, "-c", script, places[0], str(tmp_path / "a")], env=environment, capture_output=True, check=False
    )
    assert killed.returncode != 0
    committed = {path.parent.name: (path.parent / "bands.parquet").stat().st_ino for path in (tmp_path / "a").rglob("shard.json")}
    assert len(committed) == 2
    run = Run(tmp_path / "a", corpus(2), files=4, until="dedup")
    made = {path.stem: path.stat().st_ino for path in run.artifact("dedup").files("bands")}
    assert committed.items() <= made.items()
    assert tables(run, *ALL) == tables(Run(tmp_path / "b", corpus(2), until="dedup"), *ALL)


def test_previous_names_what_the_champions_selection_was_made_from(tmp_path: Path) -> None:
    run = Run(tmp_path, corpus(4), split={"floor_per_domain": 1})
    wanted = run.config.model_copy(
        update={
            "dedup": run.config.dedup.model_copy(update={"parent": "previous"}),
            "split": run.config.split.model_copy(update={"parent": "previous"}),
        }
    )
    first, told = resolve(wanted, run.workspace)
    assert (first.dedup.parent, first.split.parent) == ("none", "none")
    assert told == {"dedup.parent=previous": "none", "split.parent=previous": "none"}
    write_champion(run.workspace, {"champion": {"select": run.refs["select"].key}})
    later, _ = resolve(wanted, run.workspace)
    assert later.dedup.parent == reference(run.refs["dedup"].key, run.refs["dedup"].digest)
    assert later.split.parent == reference(run.refs["split"].key, run.refs["split"].digest)
