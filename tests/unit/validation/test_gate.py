"""The gate over real score tables: what it compares, and what it must not be fooled by."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import GateConfig, GateRule
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.promotion import champion_of, decide
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import OVERLAP, SCORES, SELECTION
from pipeline_lib.validation.compare import forgetting
from pipeline_lib.validation.gate import against_champion, against_chance, against_earlier
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord, StageRecord
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace
from tests.published import publish

DOCUMENTS = 200


class Toy(Section):
    bits: list[float] = setting(list, "bits of each test document of 100 bytes")
    items: int = setting(100, "items of the suite")
    test: bool = setting(True, "whether the test side has documents")


class Config(PipelineConfig):
    toy: Toy = setting(Toy, "Scores")


def doc_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def scored(run: StageRun, *, toy: Toy) -> Outcome:
    rows = [
        {"suite": "language", "task": "prose", "item": doc_id(n).hex(), "variant": "", "score": bits, "weight": 100.0,
         "model": ""}
        for n, bits in enumerate(toy.bits)
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(rows, schema=SCORES), run.path("scores", "scores.parquet"))
    language = {"value": 1.0, "low": 0.9, "high": 1.1, "chance": 5.0, "lower_is_better": True, "n": 50}
    grammar = {"value": 0.9, "low": 0.8, "high": 0.95, "chance": 0.5, "lower_is_better": False, "n": toy.items}
    return Outcome(details={"scores": {"grammar": grammar, **({"bits_per_byte": language} if toy.test else {})}})


def scores(folder: Path, bits: list[float], *, test: bool = True, items: int = 100) -> tuple[Artifact, Config]:
    workspace = Workspace.open(folder)
    config = Config(toy=Toy(bits=bits, test=test, items=items))
    ref = execute(workspace, Stage("validate", 1, "pure", "test_gate:scored", sections=("toy",)), config, {})
    return workspace.store.artifact(ref.key), config


def selection(path: Path, trained: int) -> Path:
    rows = [{"doc_id": doc_id(n), "side": "train" if n < trained else "test", "repeats": 1} for n in range(DOCUMENTS)]
    write_table(pa.Table.from_pylist(rows, schema=SELECTION), path)
    return path


def test_text_that_the_champion_has_learned_does_not_count(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 5, DOCUMENTS)
    candidate, config = scores(tmp_path / "a", (200 + noise).tolist())
    # It knows the first half by heart and is worse on the rest
    champion, _ = scores(tmp_path / "b", (np.where(np.arange(DOCUMENTS) < 100, 100, 220) + noise).tolist())
    assert against_champion(candidate, champion, config)["outcome"] == "fail"
    fair = against_champion(candidate, champion, config, selection=[selection(tmp_path / "s.parquet", 100)])
    assert fair["outcome"] == "pass"
    assert fair["difference"]["n"] == 100
    assert "100 test documents are left out" in fair["reasons"][1]
    none_left = against_champion(candidate, champion, config, selection=[selection(tmp_path / "t.parquet", DOCUMENTS)])
    assert none_left["outcome"] == "not_enough_evidence"


def test_only_items_of_both_models_are_compared(tmp_path: Path) -> None:
    candidate, config = scores(tmp_path / "a", [200.0] * DOCUMENTS)
    champion, _ = scores(tmp_path / "b", [210.0] * 50)
    found = against_champion(candidate, champion, config)
    assert found["difference"]["n"] == 50
    assert found["outcome"] == "pass"


def test_a_first_model_without_test_text_is_not_promoted(tmp_path: Path) -> None:
    whole, config = scores(tmp_path / "a", [200.0] * 10)
    assert against_chance(whole, config)["outcome"] == "pass"
    untested, config = scores(tmp_path / "b", [], test=False)
    verdict = against_chance(untested, config)
    assert verdict["outcome"] == "fail"
    assert any("was not scored" in reason for reason in verdict["reasons"])


def test_a_first_model_that_says_what_is_most_often_right_knows_nothing(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    rows = [{"suite": "language", "task": "prose", "item": "a", "variant": "", "score": 100.0, "weight": 100.0}]
    language = {"value": 1.0, "low": 0.9, "high": 1.1, "chance": 5.0, "lower_is_better": True, "n": 50}
    for majority, outcome in ((0.3, "pass"), (0.6, "fail")):
        told = {"value": 0.6, "low": 0.55, "high": 0.65, "chance": 0.25, "majority": majority, "lower_is_better": False, "n": 400}
        details = {"scores": {"bits_per_byte": language, "knowledge": told}}
        model = publish(workspace, "validate", {"scores": pa.Table.from_pylist(rows, schema=SCORES)}, details)
        assert against_chance(workspace.store.artifact(model.key), PipelineConfig())["outcome"] == outcome


def test_few_items_are_no_evidence(tmp_path: Path) -> None:
    for items, outcome in ((29, "fail"), (30, "pass")):
        first, config = scores(tmp_path / f"first{items}", [200.0] * 10, items=items)
        verdict = against_chance(first, config)
        assert verdict["outcome"] == outcome
        assert any("29 items" in reason for reason in verdict["reasons"]) == (items == 29)
    champion, _ = scores(tmp_path / "champion", [210.0] * DOCUMENTS)
    for pairs, outcome in ((19, "not_enough_evidence"), (20, "pass")):
        candidate, config = scores(tmp_path / f"candidate{pairs}", [200.0] * pairs)
        verdict = against_champion(candidate, champion, config)
        assert verdict["outcome"] == outcome
        assert ("19 items" in verdict["reasons"][0]) == (pairs == 19)


def test_a_champion_without_a_score_gives_a_verdict_in_plain_numbers(tmp_path: Path) -> None:
    candidate, config = scores(tmp_path / "a", [200.0] * DOCUMENTS)
    for name, bits in (("zero", [0.0] * DOCUMENTS), ("nearly", [0.0] * (DOCUMENTS - 1) + [1.0])):
        champion, _ = scores(tmp_path / name, bits)
        verdict = against_champion(candidate, champion, config)
        assert verdict["outcome"] == "not_enough_evidence"
        assert "is 0, or nearly" in verdict["reasons"][0]
        json.dumps(verdict, allow_nan=False)


def test_a_verdict_holds_until_the_rules_change(tmp_path: Path) -> None:
    candidate, _ = scores(tmp_path, [200.0] * DOCUMENTS)
    workspace = Workspace.open(tmp_path)
    record = RunRecord("toy-1", "toy", config=PipelineConfig().model_dump(mode="json"))
    record.stages = {name: StageRecord("made", ref=candidate.ref().to_json()) for name in ("train", "validate")}
    first = decide(workspace, record)
    assert first["outcome"] == "pass"
    assert decide(workspace, record) == first
    record.config["gate"]["metric"] = "never_scored"
    assert decide(workspace, record)["outcome"] == "fail"
    record.config["gate"]["metric"] = "bits_per_byte"
    record.config["gate"]["approval"] = True  # no rule of the verdict
    assert decide(workspace, record) == first


def test_a_rule_holds_up_a_better_model_only_when_it_surely_breaks_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    bits = draw.normal(200, 10, DOCUMENTS)
    champion, config = scores(tmp_path / "a", bits.tolist())
    candidate, _ = scores(tmp_path / "b", (bits * 0.97).tolist())

    def judged(*rules: GateRule) -> dict[str, Any]:
        return against_champion(candidate, champion, config.model_copy(update={"gate": GateConfig(rules=list(rules))}))

    assert judged()["outcome"] == "pass"
    kept = judged(GateRule(most_fall=0.0), GateRule(at_least=2.5), GateRule(score="nowhere", at_least=1))
    assert kept["outcome"] == "pass"
    assert [rule["outcome"] for rule in kept["rules"]] == ["pass", "pass", "not_scored"]
    assert judged(GateRule(at_least=1.5))["outcome"] == "fail"  # bits per byte: lower is better
    back = against_champion(champion, candidate, config.model_copy(update={"gate": GateConfig(rules=[GateRule(most_fall=0.01)])}))
    assert [rule["outcome"] for rule in back["rules"]] == ["fail"]
    assert "may fall by 1.00%" in back["rules"][0]["reason"]
    strict = config.model_copy(update={"gate": GateConfig(rules=[GateRule(at_least=0.5)])})
    assert [rule["outcome"] for rule in against_chance(candidate, strict)["rules"]] == ["fail"]


def test_harm_is_refused_on_every_night_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    bits, noise = draw.normal(200, 10, DOCUMENTS), draw.normal(0, 0.06, DOCUMENTS)
    champion, config = scores(tmp_path / "a", bits.tolist())
    candidate, _ = scores(tmp_path / "b", (bits * (1.032 + noise - noise.mean())).tolist())
    config = config.model_copy(update={"gate": GateConfig(rules=[GateRule(most_fall=0.02)])})
    first, late = (against_champion(candidate, champion, config, attempt=attempt) for attempt in (1, 300))
    assert first["difference"]["detectable"] < late["difference"]["detectable"], "a pass asks for more evidence"
    assert first["rules"] == late["rules"]
    assert [rule["outcome"] for rule in late["rules"]] == ["fail"], "a refusal does not: else harm would pass later"


def test_a_former_champion_asks_for_no_gain_and_shares_a_level_with_the_rules(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    bits = draw.normal(200, 10, DOCUMENTS)
    earlier, config = scores(tmp_path / "a", bits.tolist())
    noise = draw.normal(0, 0.06, DOCUMENTS)
    asked = GateConfig(min_gain=0.1, rules=[GateRule(at_least=9.0), GateRule(most_fall=0.5)])
    config = config.model_copy(update={"gate": asked})
    for loss, outcomes in ((0.0, ["pass", "pass"]), (0.013, ["fail", "pass"])):
        candidate, _ = scores(tmp_path / str(loss), (bits * (1 + noise - noise.mean() + loss)).tolist())
        told = against_earlier(candidate, earlier, config)
        assert [rule["outcome"] for rule in told] == outcomes, told
    assert "may fall by 0.00%" in told[0]["reason"]
    alone = against_earlier(candidate, earlier, config.model_copy(update={"gate": GateConfig(rules=[])}))
    assert alone[0]["reason"] != told[0]["reason"], "wider where more is asked"


def test_a_suite_that_only_the_champion_could_answer_is_lost(tmp_path: Path) -> None:
    champion, config = scores(tmp_path / "a", [210.0] * DOCUMENTS)
    rows = [
        {"suite": "language", "task": "prose", "item": doc_id(n).hex(), "variant": "", "score": 200.0, "weight": 100.0}
        for n in range(DOCUMENTS)
    ]
    details = {
        "scores": {"bits_per_byte": {"value": 2.0, "lower_is_better": True}},
        "not_scored": [{"suite": "grammar", "items": 100, "reason": "the model gives no number"}],
    }
    workspace = Workspace.open(tmp_path / "b")
    ref = publish(workspace, "validate", {"scores": pa.Table.from_pylist(rows, schema=SCORES)}, details)
    verdict = against_champion(workspace.store.artifact(ref.key), champion, config)
    assert verdict["outcome"] == "fail"
    assert "rule on grammar: not scored: the model gives no number; the champion was" in verdict["reasons"]


def test_two_models_that_answer_alike_differ_by_nothing(tmp_path: Path) -> None:
    bits = np.random.default_rng(3).normal(200, 10, DOCUMENTS).tolist()
    (one, config), (other, _) = scores(tmp_path / "a", bits), scores(tmp_path / "b", bits)
    verdict = against_champion(one, other, config)
    assert "gain +0.00% (97.5 % interval +0.00% to +0.00%)" in verdict["reasons"][0]
    assert "-0" not in json.dumps([verdict["difference"], forgetting(one, other)])


def contaminated(folder: Path, bits: list[float], known: int) -> Artifact:
    workspace = Workspace.open(folder)
    rows = [
        {"suite": "language", "task": "prose", "item": doc_id(n).hex(), "variant": "", "score": score, "weight": 100.0}
        for n, score in enumerate(bits)
    ]
    overlap = [
        {"suite": "language", "item": doc_id(n).hex(), "share": float(n < known), "contaminated": n < known}
        for n in range(len(bits))
    ]
    tables = {"scores": pa.Table.from_pylist(rows, schema=SCORES), "overlap": pa.Table.from_pylist(overlap, schema=OVERLAP)}
    language = {"value": 1.0, "low": 0.9, "high": 1.1, "chance": 5.0, "lower_is_better": True, "n": len(bits)}
    grammar = {"value": 0.9, "low": 0.8, "chance": 0.5, "lower_is_better": False, "n": 100}
    details = {"scores": {"bits_per_byte": {**language, "contaminated_items": known}, "grammar": grammar}}
    return workspace.store.artifact(publish(workspace, "validate", tables, details).key)


def test_a_model_that_has_read_the_test_is_not_promoted_for_it(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).normal(200, 10, DOCUMENTS)
    champion, config = scores(tmp_path / "a", bits.tolist())
    for known, outcome in ((0, "pass"), (15, "not_enough_evidence"), (40, "fail")):
        read = np.arange(DOCUMENTS) < (known or DOCUMENTS)
        candidate = contaminated(tmp_path / str(known), np.where(read, bits / 2, bits).tolist(), known)
        verdict = against_champion(candidate, champion, config)
        assert verdict["outcome"] == outcome, verdict
        assert any("training text contains them" in reason for reason in verdict["reasons"]) == bool(known)
    alone = against_chance(contaminated(tmp_path / "first", bits.tolist(), 40), config)
    assert any("what decides is in the model's training text" in reason for reason in alone["reasons"])


def test_more_stereotypes_hold_up_a_better_model(tmp_path: Path) -> None:
    def model(name: str, share: float, bits: float) -> Artifact:
        workspace = Workspace.open(tmp_path / name)
        draw = np.random.default_rng(3)
        rows = [
            {"suite": "language", "task": "prose", "item": str(n), "variant": "", "score": bits + n % 7, "weight": 100.0}
            for n in range(DOCUMENTS)
        ] + [
            {"suite": "pronouns", "task": "nurse", "item": str(n), "variant": "", "form": "preference", "weight": 1.0,
             "score": float(drawn < share)}
            for n, drawn in enumerate(draw.random(300))
        ]  # fmt: skip
        details = {
            "bits_per_byte": {"value": bits / 100, "lower_is_better": True},
            "pronouns": {"value": share, "lower_is_better": False, "judged": False},
        }
        tables = {"scores": pa.Table.from_pylist(rows, schema=SCORES)}
        return workspace.store.artifact(publish(workspace, "validate", tables, {"scores": details}).key)

    config = PipelineConfig()
    champion = model("champion", 0.5, 200)
    verdicts = {share: against_champion(model(str(share), share, 190), champion, config) for share in (0.3, 0.5, 0.7)}
    assert {share: verdict["outcome"] for share, verdict in verdicts.items()} == {0.3: "pass", 0.5: "pass", 0.7: "fail"}
    (refused,) = [rule for rule in verdicts[0.7]["rules"] if rule["outcome"] == "fail"]
    assert refused["score"] == "pronouns"


def test_who_was_champion_some_nights_ago() -> None:
    def entry(day: int) -> dict[str, str]:
        return {"train": f"model-{day}", "promoted": f"2026-01-{day:02d}T03:00:00+00:00"}

    state = {"champion": entry(20), "history": [{}, entry(1), entry(5), entry(12)]}
    for day, model in ((2, "model-1"), (11, "model-5"), (15, "model-12")):
        assert champion_of(state, datetime(2026, 1, day, 12, tzinfo=UTC))["train"] == model
    assert champion_of(state, datetime(2026, 1, 21, tzinfo=UTC)) == {}, "it is the present one"
    assert champion_of(state, datetime(2025, 12, 31, tzinfo=UTC)) == {}
    assert champion_of({}, datetime(2026, 1, 1, tzinfo=UTC)) == {}


def test_a_record_tells_who_decided_over_the_gate() -> None:
    for decision, by, told in (
        ("promote", "anna", "promoted by anna"),
        ("keep", "the time limit", "kept back by the time limit"),
        ("keep", "gate", ""),
    ):
        assert RunRecord("r", "p", verdict={"outcome": "fail", "decision": decision, "decided_by": by}).decided == told
    assert RunRecord("r", "p", verdict={"outcome": "same"}).decided == ""
