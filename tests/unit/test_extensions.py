"""Users' modules: what they register, how a wrong one is told, and how their source enters fingerprints."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline_lib.config.data import IngestConfig, ScoreConfig, SourceConfig
from pipeline_lib.config.load import load_config
from pipeline_lib.config.model import ModelConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.extensions import (
    active_extensions,
    allow_modules,
    check_extensions,
    check_modules,
    digests,
    extension,
    extensions,
    load_extensions,
)
from pipeline_lib.run import run_plain
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.schemas import SUITE_ITEMS
from pipeline_lib.workspace.sql import query
from pipeline_lib.workspace.stage import parameters_of
from pipeline_lib.workspace.workspace import Workspace

EXAMPLES = Path(__file__).parents[2] / "deployments" / "extensions"


def module(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.py"
    path.write_text("from pipeline_lib.extensions import extend\n" + textwrap.dedent(text))
    return str(path)


def config_with(*modules: str, **sections: object) -> PipelineConfig:
    return PipelineConfig.model_validate({"execution": {"extensions": list(modules)}, **sections})


def test_the_examples_register_one_of_each_kind() -> None:
    load_extensions([str(path) for path in sorted(EXAMPLES.glob("*.py"))])
    assert {kind: list(extensions(kind)) for kind in ("source", "signal", "rule_set", "model", "callback", "suite")} == {
        "source": ["mail"], "signal": ["question_share"], "rule_set": ["support"], "model": ["olmo_example"],
        "callback": ["loss_spikes"], "suite": ["counting"],
    }  # fmt: skip


def test_example_source_reads_mail(tmp_path: Path) -> None:
    archive = tmp_path / "a.mbox"
    archive.write_bytes(
        b"From a@x Mon Jan  1 00:00:00 2024\nSubject: Hello\nDate: Mon, 01 Jan 2024 10:00:00 +0100\n"
        b"Message-ID: <1@x>\n\nFirst.\n\n"
        b"From a@x Mon Jan  1 00:00:00 2024\nContent-Type: text/html\n\n<p>no plain text</p>\n\n"
        b"From a@x Mon Jan  1 00:00:00 2024\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nSch=C3=B6n\n"
    )
    load_extensions([str(EXAMPLES / "mail_source.py")])
    batches = list(extension("source", "mail")(SourceConfig(name="mail", kind="module", path=str(archive), licence="CC0-1.0")))
    rows = pa.Table.from_batches(batches).to_pylist()
    assert [row["text"].strip() for row in rows] == ["First.", "Schön"]
    assert (rows[0]["id"], rows[0]["subject"], rows[0]["domain"], rows[0]["licence"]) == ("<1@x>", "Hello", "mail", "CC0-1.0")
    assert rows[0]["created_at"].isoformat() == "2024-01-01T09:00:00+00:00"
    assert rows[1]["created_at"] is None


def test_example_signal_measures_columns() -> None:
    load_extensions([str(EXAMPLES / "question_signal.py")])
    values = extension("signal", "question_share")(pa.array(["a? b. c!", "", "x?", "no end"], pa.large_string()))
    assert values.to_pylist() == pytest.approx([1 / 3, 0, 1, 0])


def test_example_suite_has_right_answers() -> None:
    load_extensions([str(EXAMPLES / "counting_suite.py")])
    build = extension("suite", "counting")
    table = build(3)
    assert table.schema == SUITE_ITEMS
    assert table == build(3) != build(4)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    words += ["thirteen", "fourteen"]
    for row in table.to_pylist():
        shown = [words.index(word) for word in row["prompt"].rstrip(",").split(", ")]
        right = words.index(row["options"][row["answer"]].strip())
        assert right - shown[-1] == shown[1] - shown[0]
        assert len(set(row["options"])) == 4


def test_example_model_has_the_configured_size() -> None:
    load_extensions([str(EXAMPLES / "olmo_model.py")])
    model = extension("model", "olmo_example")(ModelConfig(width=32, depth=2, heads=2, ffn_width=64), 300, 64)
    assert (model.config.vocab_size, model.config.num_hidden_layers, model.config.max_position_embeddings) == (300, 2, 64)
    assert model.get_input_embeddings().weight.shape == (300, 32)


def test_example_callback_counts_spikes(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    load_extensions([str(EXAMPLES / "spike_callback.py")])
    callback = extension("callback", "loss_spikes")()
    state, control, arguments = TrainerState(), TrainerControl(), TrainingArguments(use_cpu=True)
    for step in range(40):
        state.global_step = step
        callback.on_log(arguments, state, control, logs={"loss": 9.0 if step == 30 else 2.0})
    callback.on_train_end(arguments, state, control)
    assert capsys.readouterr().out == "loss spikes: 1, at steps [30]\n"


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    load_extensions([module(tmp_path, "one", "@extend.source('tickets')\ndef read(source): yield\n")])
    with pytest.raises(ConfigError, match="did you mean 'tickets'"):
        extension("source", "tikets")
    with pytest.raises(ConfigError, match="no loaded extension registers a suite"):
        extension("suite", "x")


def test_only_the_modules_of_this_configuration_are_seen(tmp_path: Path) -> None:
    one = module(tmp_path, "one", "extend.rule_set('a', {})\n")
    two = module(tmp_path, "two", "extend.rule_set('a', {'x': 'true'})\nextend.rule_set('b', {})\n")
    load_extensions([one])
    assert extensions("rule_set") == {"a": {}}
    load_extensions([two])
    assert (extensions("rule_set"), active_extensions()) == ({"a": {"x": "true"}, "b": {}}, (two,))
    load_extensions([one, two])
    with pytest.raises(ConfigError, match="two extensions register the rule_set 'a'"):
        extensions("rule_set")
    load_extensions([])
    assert extensions("rule_set") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nraise ValueError('boom')\n", r"broken\.py:3: ValueError: boom"),
        ("import no_such_module_here\n", r"broken\.py:2: ModuleNotFoundError"),
        ("def f(:\n", "SyntaxError"),
        ("extend.rule_set('a b', {})\n", "'a b' is no name for a rule_set"),
    ],
)
def test_a_broken_module_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_extensions([module(tmp_path, "broken", text)])


@pytest.mark.parametrize("name", ["no_such_module_here", "os.path; x", "/no/such/file.py", "sys"])
def test_a_module_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"execution\.extensions"):
        load_extensions([name])


def test_dotted_packages_load_and_their_helpers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_company_extensions"
    package.mkdir()
    (package / "helper.py").write_text("LIMIT = 3\n")
    (package / "__init__.py").write_text(
        "from pipeline_lib.extensions import extend\nfrom .helper import LIMIT\n"
        "extend.rule_set('short', {'a': f'words < {LIMIT}'})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["my_company_extensions"]
    before = digests(["rule_set"], names)
    assert extension("rule_set", "short") == {"a": "words < 3"}
    (package / "helper.py").write_text("LIMIT = 44\n")
    assert digests(["rule_set"], names) != before
    assert extension("rule_set", "short") == {"a": "words < 44"}


def test_source_changes_reach_exactly_the_stages_that_use_the_kind(tmp_path: Path) -> None:
    signals = module(tmp_path, "signals", "@extend.signal('s')\ndef s(text): return text\n")
    models = module(tmp_path, "models", "@extend.model('m')\ndef m(model, vocabulary_size, sequence_length): return None\n")
    config = config_with(signals, models)

    def identities() -> dict[str, object]:
        wanted = ("ingest", "score", "dedup", "calibrate", "tune", "plan", "train")
        return {
            name: parameters_of(BY_NAME[name], config, Workspace.open(tmp_path / "home"))[1].get("extensions", {})
            for name in wanted
        }

    before = identities()
    assert {name: list(found) for name, found in before.items()} == {
        "ingest": [], "score": ["signal:s"], "dedup": [], "calibrate": ["model:m"], "tune": ["model:m"], "plan": [],
        "train": ["model:m"],
    }  # fmt: skip
    Path(signals).write_text(Path(signals).read_text() + "# changed\n")
    after = identities()
    assert {name for name in after if after[name] != before[name]} == {"score"}
    moved = module(tmp_path, "moved", "@extend.model('m')\ndef m(model, vocabulary_size, sequence_length): return None\n")
    assert digests(["model"], [moved]) == before["train"]  # where the file lies does not matter


def test_names_are_checked_before_any_work(tmp_path: Path) -> None:
    file = module(tmp_path, "one", "@extend.source('tickets')\ndef read(source): yield\nextend.rule_set('mine', {})\n")
    source = SourceConfig(kind="module", name="tickets")
    execution = ExecutionConfig(extensions=[file])
    good = PipelineConfig(execution=execution, ingest=IngestConfig(sources=[source]), score=ScoreConfig(rules={"*": "mine"}))
    check_extensions(good)
    with pytest.raises(ConfigError, match="did you mean 'tickets'"):
        check_extensions(config_with(file, ingest={"sources": [{"kind": "module", "name": "ticket"}]}))
    with pytest.raises(ConfigError, match=r"score\.rules: there is no rule set 'proze'\n  → did you mean prose"):
        check_extensions(config_with(file, score={"rules": {"*": "proze"}}))


def test_a_pipeline_file_names_its_modules_by_path(tmp_path: Path) -> None:
    module(tmp_path, "mine", "extend.rule_set('mine', {})\n")
    file = tmp_path / "p.yaml"
    file.write_text("execution: {extensions: [mine.py]}\nscore: {rules: {'*': mine}}\n")
    config = load_config(file)
    assert config.execution.extensions == [str(tmp_path / "mine.py")]
    check_extensions(config)


def test_a_run_uses_source_signal_rule_set_and_suite(tmp_path: Path) -> None:
    archive = tmp_path / "a.mbox"
    letters = [
        f"From a@x Mon Jan  1 00:00:00 2024\nMessage-ID: <{n}@x>\n\n{'What is word ' * 30 if n else 'Too short?'}\n\n"
        for n in range(3)
    ]
    archive.write_text("".join(letters))
    names = ("mail_source", "question_signal", "support_rules", "counting_suite")
    config = config_with(
        *(str(EXAMPLES / f"{name}.py") for name in names),
        ingest={"sources": [{"kind": "module", "name": "mail", "path": str(archive), "domain": "support"}]},
        score={"rules": {"support": "support"}},
    )
    workspace = Workspace.open(tmp_path / "ws")
    record = run_plain(workspace, config, until="score")
    asked = """select record_index, ext_question_share as share, kept, reason
        from signals join documents using (doc_id) join decisions using (doc_id) order by record_index"""
    rows = query(workspace, asked).to_pylist()
    assert [(row["share"], row["kept"]) for row in rows] == [(1.0, False), (1.0, False), (0.0, True), (0.0, True)]
    assert {row["reason"] for row in rows[:2]} == {"needs characters >= 200", "needs words >= 30"}
    items = query(workspace, "select count(*) as n from suite_items where suite = 'counting'").to_pylist()
    assert items == [{"n": 60}]
    assert record.outcome == "completed"
    again = run_plain(workspace, config, until="score")
    assert {entry.state for entry in again.stages.values()} == {"reused"}


def test_a_form_names_only_modules_that_somebody_at_the_machine_has_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_ALLOWED_MODULES", "ours.sources, ours.rules")
    check_modules(config_with("ours.rules", "any/path.py"))
    with pytest.raises(ConfigError, match=r"antigravity.*\n.*MILLRACE_ALLOWED_MODULES"):
        check_modules(config_with("ours.rules", "antigravity"), lambda: {"deployed.module"})
    check_modules(config_with("deployed.module"), lambda: {"deployed.module"})
    allow_modules(config_with("antigravity"))  # the command line
    check_modules(config_with("antigravity", "ours.sources"))
