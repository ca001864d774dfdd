"""The built-in suites are large enough, well-formed, and true."""

import ast
import json

import pytest

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.validation.files import read_suite
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

COLOURS = ["red", "green", "blue", "grey", "black", "white", "brown", "yellow", "pink", "orange"]


def build(tmp_path, **settings):
    workspace = Workspace.open(tmp_path / "workspace")
    config = PipelineConfig(suites=SuitesConfig(**settings))
    ref = execute(workspace, BY_NAME["suites"], config, {})
    return ref, read_tables(workspace.store.artifact(ref.key).files("suite_items")).to_pylist()


def test_smoke_has_a_thousand_items_and_standard_ten_thousand(tmp_path):
    _, smoke = build(tmp_path / "a")
    _, standard = build(tmp_path / "b", level="standard")
    assert len(smoke) >= 1000
    assert len(standard) >= 10_000
    assert len({(i["suite"], i["item"]) for i in smoke}) == len(smoke)
    assert all(len(set(i["options"])) == len(i["options"]) and 0 <= i["answer"] < len(i["options"]) for i in standard)


def test_syntax_items_are_decided_by_the_compiler(tmp_path):
    _, items = build(tmp_path, names=["syntax"], level="standard")
    assert len(items) > 300
    for item in items:
        ast.parse(item["options"][0])
        with pytest.raises(SyntaxError):
            ast.parse(item["options"][1])


def test_the_right_answer_is_in_no_fixed_place(tmp_path):
    _, items = build(tmp_path, names=["knowledge"])
    places = [i["answer"] for i in items]
    assert {0, 1, 2, 3} == set(places)
    assert max(places.count(p) for p in range(4)) < len(places) / 2


def test_same_seed_same_bytes_other_seed_other_items(tmp_path):
    first, _ = build(tmp_path / "a")
    again, _ = build(tmp_path / "b")
    assert first.digest == again.digest
    workspace = Workspace.open(tmp_path / "c")
    assert execute(workspace, BY_NAME["suites"], PipelineConfig(seed=1), {}).digest != first.digest


def test_a_users_file_becomes_a_suite_and_its_content_is_identity(tmp_path):
    file = tmp_path / "earth.jsonl"
    file.write_text(json.dumps({"prompt": "The capital of France is", "options": [" Paris.", " Rome."], "answer": 0}) + "\n")
    first, items = build(tmp_path, names=["zen"], paths=[str(file)])
    assert [i["options"] for i in items if i["suite"] == "earth"] == [[" Paris.", " Rome."]]
    file.write_text(json.dumps({"prompt": "The capital of Italy is", "options": [" Paris.", " Rome."], "answer": 1}) + "\n")
    second, items = build(tmp_path, names=["zen"], paths=[str(file)])
    assert not second.reused
    assert second.digest != first.digest
    assert [i["answer"] for i in items if i["suite"] == "earth"] == [1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":2: not JSON"),
        ("[1]", ":2: a list instead of an object"),
        ('{"options": ["a"], "answer": 0}', "'options'"),
        ('{"options": ["a", "b"], "answer": 2}', "'answer' is 2; it must be an index from 0 to 1"),
        ('{"options": ["a", "b"], "answer": true}', "'answer' is True"),
        ('{"options": ["a", "b"], "answer": 0, "prompt": 3}', "'prompt' must be text"),
        ('{"options": ["a", "b"], "answer": 0, "form": "essay"}', "'form' is 'essay'"),
    ],
)
def test_a_malformed_line_is_named_with_its_field(tmp_path, line, told):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"options": ["a", "b"], "answer": 0}\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_suite(file)
    assert told in str(caught.value)
    assert f"{file}:2" in str(caught.value)


def test_empty_suite_and_unknown_suite_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no items"):
        read_suite(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="unknown suite 'gramar'"):
        build(tmp_path, names=["gramar"])


def test_items_of_several_files_keep_apart_and_one_file_names_none_twice(tmp_path):
    folder = tmp_path / "guide"
    folder.mkdir()
    for name in ("general", "science", "earth_facts"):
        row = {"prompt": f"The {name}\u2028is", "options": [" a", " b"], "answer": 0}
        (folder / f"{name}.jsonl").write_text("\ufeff" + "\n".join([json.dumps(row, ensure_ascii=False)] * 2), "utf-8")
    items = read_suite(folder)
    assert len({item.item for item in items}) == 6
    assert {item.category for item in items} == {"general", "science", "earth_facts"}
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * '{"item": "same", "options": [" a", " b"], "answer": 0}\n')
    with pytest.raises(ConfigError, match=r"field 'item': two items are named 'same', here and in twice.jsonl:1"):
        read_suite(twice)
    for name in ("latin.jsonl", "latin.csv"):
        (tmp_path / name).write_bytes(b'{"options": ["caf\xe9", "b"], "answer": 0}\n')
        with pytest.raises(ConfigError, match="not UTF-8"):
            read_suite(tmp_path / name)


def test_a_suite_that_cannot_be_read_is_named_and_the_others_go_on(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "zen.jsonl").write_text('{"options": ["a", "b"], "answer": 0}\n')
    ref, items = build(tmp_path, names=["zen"], paths=[str(tmp_path / name) for name in ("bad.jsonl", "none.jsonl", "zen.jsonl")])
    assert {item["suite"] for item in items} == {"zen"}
    manifest = Workspace.open(tmp_path / "workspace").store.manifest(ref.key)
    reasons = {lost["suite"]: lost["reason"] for lost in manifest.details["not_built"]}
    assert "bad.jsonl:1: not JSON" in reasons["bad"]
    assert "there is no suite file" in reasons["none"]
    assert "a built-in suite has this name" in reasons["zen"]
    assert [event["kind"] for event in manifest.events] == ["suite_not_built"] * 3


def test_a_users_table_is_asked_in_the_suite_earth(tmp_path):
    rows = [
        "lake,region,depth in metres,colour",
        *(f"Lake {n},{'north' if n % 2 else 'south'},{10 * 2**n},{c}" for n, c in enumerate(COLOURS)),
    ]
    (tmp_path / "lakes.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "bad.csv").write_text("lake,depth\nLake 1,3\nLake 1,4\n")
    ref, items = build(
        tmp_path, names=["zen"], earth_tables=[str(tmp_path / name) for name in ("lakes.csv", "bad.csv", "none.csv")]
    )
    asked = [item for item in items if item["suite"] == "earth"]
    assert {item["category"] for item in asked} == {"tables/lakes/depth in metres", "tables/lakes/colour"}
    compared = [item["options"][item["answer"]] for item in asked if item["form"] == "minimal_pair"]
    assert "The depth in metres of Lake 1 is larger than that of Lake 0." in compared
    assert "Lake 0 has a smaller depth in metres than Lake 1." in compared
    colours = {f"Lake {n}": colour for n, colour in enumerate(COLOURS)}
    for item in asked:
        if item["form"] == "choice":
            (lake,) = item["entities"]
            assert item["options"][item["answer"]] == f" {colours[lake]}."
            assert all(int(lake[5:]) % 2 == COLOURS.index(option.strip(" .")) % 2 for option in item["options"])
    reasons = {
        lost["suite"]: lost["reason"]
        for lost in Workspace.open(tmp_path / "workspace").store.manifest(ref.key).details["not_built"]
    }
    assert "bad.csv:3" in reasons["earth/tables/bad"]
    assert "'lake' must name the entity, once" in reasons["earth/tables/bad"]
    assert "no such table" in reasons["earth/tables/none"]
