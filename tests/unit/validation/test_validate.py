"""The stage on a tiny model: what it tells beside the scores, and that its memory never answers for another model."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pipeline_lib.config.model import ValidationConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import CUTS, DOCUMENTS, SELECTION
from pipeline_lib.validation.gate import against_champion
from pipeline_lib.validation.items import Item, items_table
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.small_models import tokenizer_of, untrained
from tests.published import packed, publish

NOISE = np.random.default_rng(0)
WORDS = ["mill", "wheel", "river", "sack", "flour", "stone", "night", "water", "wind", "field", "oats", "cart", "bridge", "lamp"]


def prose(words: int) -> str:
    return " ".join(NOISE.choice(WORDS, words))


TEST = [prose(60) for _ in range(12)]
TRAIN = [prose(200) for _ in range(8)] + [
    f"{prose(20)} {TEST[0]} {prose(20)}",
    f"{prose(9)} The capital of Utopia is Amaurot. {prose(9)}",
]
KNOWN = Item("towns", "a", "choice", "The capital of Utopia is", (" Amaurot.", " Rome."), 0, "towns")
ITEMS = [
    KNOWN,
    *(Item("towns", f"b{n}", "choice", f"The capital of land {n} is", (" Rome.", " Bern."), n % 2, "towns") for n in range(9)),
]
OTHERS = [
    Item("pairs", str(n), "minimal_pair", "", (f"The mills {n} turn.", f"The mills {n} turns."), 0, "pairs") for n in range(9)
]


def doc_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of(TRAIN, 300, folder / "tokenizer")
    little = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 2, "ffn_width": 64, "tied_embeddings": False}
    small = PipelineConfig().model.model_copy(update=little)
    return [untrained(tokenizer, folder / str(seed), small, seed=seed) for seed in (0, 1)]


def validated(home: Path, model: Path, items: list[Item], *, cut: bool = False, packed_too: int = 0, **settings: object):
    """`packed_too`: documents of the test side that an earlier night trained on and nobody selects any more."""
    workspace = Workspace.open(home)
    rows = [
        {
            "doc_id": doc_id(n),
            "text": text,
            "domain": "prose",
            "kind": "text",
            "created_at": (2010 + n % 2 * 5 - 1970) * 31_557_600,
        }
        for n, text in enumerate(TRAIN + TEST)
    ]
    sides = [{"doc_id": doc_id(n), "side": "train" if n < len(TRAIN) else "test", "domain": "prose"} for n in range(len(rows))]
    earlier = range(len(rows), len(rows) + packed_too)
    rows += [{**rows[0], "doc_id": doc_id(n), "text": TEST[n - earlier[0] + 1]} for n in earlier]
    read = sides + [{"doc_id": doc_id(n), "side": "train", "domain": "prose"} for n in earlier]
    last = TRAIN[-1].index("The capital")
    cuts = [{"doc_id": doc_id(len(TRAIN) - 1), "start": last, "end": last + 10}] if cut else []
    inputs = {
        "ingest": publish(workspace, "ingest", {"documents": pa.Table.from_pylist(rows, schema=DOCUMENTS)}),
        "select": publish(
            workspace, "select",
            {"selection": pa.Table.from_pylist(sides, schema=SELECTION), "cuts": pa.Table.from_pylist(cuts, schema=CUTS)},
        ),
        "pack": publish(workspace, "pack", {"rows": packed(pa.Table.from_pylist(read, schema=SELECTION))}),
        "suites": publish(workspace, "suites", {"suite_items": items_table(items)}, {"not_built": []}),
        "train": publish(workspace, "train", {"model": model}),
    }  # fmt: skip
    config = PipelineConfig(validation=ValidationConfig(bootstrap=100, sample_tokens=8, **settings))
    ref = execute(workspace, BY_NAME["validate"], config, inputs)
    artifact = workspace.store.artifact(ref.key)
    return artifact, read_tables(artifact.files("scores"))


def answers(rows: pa.Table, suite: str) -> list[dict]:
    return rows.filter(pa.array([name == suite for name in rows["suite"].to_pylist()])).to_pylist()


def test_what_training_text_gives_away_stands_apart(tmp_path, models):
    artifact, _ = validated(tmp_path, models[0], ITEMS + OTHERS)
    overlap = {(r["suite"], r["item"]): r for r in read_tables(artifact.files("overlap")).to_pylist()}
    copied = doc_id(len(TRAIN)).hex()
    assert overlap["language", copied]["share"] == 1.0
    assert overlap["towns", "a"]["contaminated"]
    assert {pair for pair, row in overlap.items() if row["contaminated"]} == {("language", copied), ("towns", "a")}
    assert ("pairs", "0") not in overlap, "four words say nothing"
    towns = artifact.details["scores"]["towns"]
    assert (towns["contaminated_items"], towns["clean"]["n"], towns["contaminated"]["n"]) == (1, 9, 1)
    language = artifact.details["scores"]["bits_per_byte"]
    assert (language["clean"]["n"], language["contaminated"]["n"]) == (11, 1)
    without, _ = validated(tmp_path, models[0], ITEMS + OTHERS, cut=True)
    assert without.details["scores"]["towns"]["contaminated_items"] == 0, "what was cut out was not trained on"
    more, _ = validated(tmp_path, models[0], OTHERS, packed_too=2)
    assert more.details["scores"]["bits_per_byte"]["contaminated_items"] == 3, "no longer selected is still trained on"


def poisoned(model: Path, folder: Path, tokens: set[int]) -> Path:
    """A copy of a model that gives NaN after each of these tokens."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][sorted(tokens)] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def taken_over(artifact: Artifact) -> int:
    return sum(bool(shard["home"]) for shard in artifact.manifest.shards.values())


def test_answers_are_kept_for_the_same_model_items_and_engine_alone(tmp_path, models):
    _, rows = validated(tmp_path, models[0], ITEMS + OTHERS)
    changed = [*ITEMS, *OTHERS[1:]]
    second, again = validated(tmp_path, models[0], changed)
    assert taken_over(second) == len(second.manifest.shards) - 1, "only the changed suite is scored"
    assert answers(again, "towns") == answers(rows, "towns")
    assert len(answers(again, "pairs")) == 8
    other, theirs = validated(tmp_path, models[1], changed)
    assert taken_over(other) == 0, "other weights, other answers"
    assert answers(theirs, "towns") != answers(again, "towns")
    fresh, own = validated(tmp_path / "elsewhere", models[1], changed)
    assert own.equals(theirs)
    assert other.manifest.digest == fresh.manifest.digest, "the memory changes nothing"
    copy = shutil.copytree(models[1], tmp_path / "copy")
    same, _ = validated(tmp_path, copy, changed, robustness_items=5)
    assert taken_over(same) == len(same.manifest.shards) - 1, "a copy of a model is the model: only other perturbed items are new"


def test_years_and_samples_are_told_and_repeat(tmp_path, models):
    first, _ = validated(tmp_path / "a", models[0], OTHERS)
    again, _ = validated(tmp_path / "b", models[0], OTHERS)
    assert set(first.details["years"]) == {"2010", "2015"}
    assert sum(year["n"] for year in first.details["years"].values()) == len(TEST)
    texts = first.details["samples"]
    assert len(texts) == 4
    assert all(sample["text"] for sample in texts)
    assert again.details["samples"] == texts


def test_what_a_broken_model_gives_no_number_for_is_named_and_the_others_go_on(tmp_path, models):
    encode = Tokenizer.from_file(str(models[0] / "tokenizer.json")).encode
    asked = [item.prompt + option for item in ITEMS + OTHERS for option in item.options]
    in_items, in_tests = ({token for text in texts for token in encode(text).ids} for texts in (asked, TEST))
    healthy, _ = validated(tmp_path, models[0], ITEMS + OTHERS)
    broken, _ = validated(tmp_path, poisoned(models[0], tmp_path / "some", in_tests - in_items), ITEMS + OTHERS)
    assert broken.details["not_scored"] == [{"suite": "language", "items": len(TEST), "reason": "the model gives no number"}]
    assert {name for name in broken.details["scores"] if "/" not in name} == {"pairs", "towns"}
    verdict = against_champion(broken, healthy, PipelineConfig())
    assert verdict["outcome"] == "fail"
    assert "bits_per_byte was not scored: the model gives no number" in verdict["reasons"][0]
    with pytest.raises(StageFailedError, match=r"nothing could be scored.*language: the model gives no number; pairs: the model"):
        validated(tmp_path, poisoned(models[0], tmp_path / "all", in_tests | in_items), ITEMS + OTHERS)
