"""Profiles are policies over calibrated points; what they become follows the machine and the memory a run may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plan_toy import CALIBRATED, make_plan
from search_toy import Config, run_until

from pipeline_lib.config.load import load_config
from pipeline_lib.config.model import CalibrateConfig, PlanConfig, TrainConfig
from pipeline_lib.config.profiles import ProfileConfig, built_in_profiles
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import ConfigError, RefusedError
from pipeline_lib.planning.calibrate import seconds_allowed
from pipeline_lib.planning.profiles import at_batch, become, choose_profile, profile_table
from pipeline_lib.workspace.services import Services

GIB = 1 << 30


def point(micro_batch: int, precision: str, rate: float, gib: float, *, again: bool = False) -> dict[str, Any]:
    return {
        "micro_batch": micro_batch, "precision": precision, "tokens_per_second": rate, "peak_memory_bytes": int(gib * GIB),
        "estimated_bytes": int(gib * GIB), "activation_checkpointing": again, "error": "",
    }  # fmt: skip


MEASURED = {
    "profiles": [
        point(4, "bf16", 9_200.0, 1.0), point(4, "fp32", 9_100.0, 1.2),
        point(8, "bf16", 10_000.0, 2.0), point(8, "fp32", 7_000.0, 2.5),
        {"error": "not measured", "micro_batch": 16, "precision": "bf16"},
    ],
    "variants": [point(4, "bf16", 6_500.0, 0.6, again=True)],
    "sequence_length": 256, "threads": 2,
}  # fmt: skip


def test_a_batch_smaller_than_a_pass_goes_at_the_speed_and_in_the_memory_of_the_nearest_smaller_one(tmp_path: Path) -> None:
    fast = choose_profile(MEASURED, ResourcesConfig(memory_gib=4), profile="fast")
    assert at_batch(fast, MEASURED, 8) == fast
    assert {at_batch(fast, MEASURED, micro)["peak_memory_bytes"] for micro in (6, 4, 2)} == {GIB}
    large, small = (make_plan(tmp_path, train=TrainConfig(batch_tokens=n * 256)).details for n in (8, 5))
    assert (large["tokens_per_second"], small["tokens_per_second"]) == (10_000, pytest.approx(8_000))
    assert small["seconds_per_step"] == pytest.approx(5 * 256 / 8_000)
    peaks = [made["promises"]["peak_memory_bytes"]["value"] for made in (large, small)]
    assert peaks == pytest.approx([2 * GIB, GIB], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fast", (8, "bf16", False)),
        ("balanced", (4, "bf16", False)),  # 92 % of the speed in half the memory
        ("quality", (4, "fp32", False)),  # 91 %; fp32 on the larger micro-batch costs 30 %
        ("memory_efficient", (4, "bf16", True)),
    ],
)
def test_each_profile_takes_what_its_policy_says(name: str, expected: tuple[int, str, bool]) -> None:
    found = choose_profile(MEASURED, ResourcesConfig(memory_gib=4), profile=name)
    assert (found["micro_batch"], found["precision"], found["activation_checkpointing"]) == expected
    assert (found["profile"], found["instead_of"]) == (name, "")


def test_priority_asks_for_a_profile_and_less_memory_for_another() -> None:
    by_priority = {
        p: choose_profile(MEASURED, ResourcesConfig(memory_gib=4), priority=p) for p in ("speed", "balanced", "quality")
    }
    assert {priority: found["profile"] for priority, found in by_priority.items()} == {
        "speed": "fast", "balanced": "balanced", "quality": "quality",
    }  # fmt: skip
    assert choose_profile(MEASURED, ResourcesConfig(memory_gib=1.1))["micro_batch"] == 4
    tight = choose_profile(MEASURED, ResourcesConfig(memory_gib=0.8))
    assert (tight["activation_checkpointing"], tight["wanted_tokens_per_second"]) == (True, 10_000)
    never = MEASURED | {"policies": {"never": {"checkpointing": "never"}}}
    fallen = choose_profile(never, ResourcesConfig(memory_gib=0.8), profile="never")
    assert (fallen["profile"], fallen["instead_of"]) == ("balanced", "never")


def test_what_fits_nowhere_is_refused_with_what_would() -> None:
    with pytest.raises(RefusedError, match=r"0\.60 GiB.*checkpointing") as refused:
        choose_profile(MEASURED, ResourcesConfig(memory_gib=0.5))
    assert choose_profile(MEASURED, ResourcesConfig(memory_gib=float(refused.value.fix.split()[3])))


def test_own_profiles_and_unknown_ones() -> None:
    own = MEASURED | {"policies": {"mine": ProfileConfig(precision=["fp32"], micro_batch=8).model_dump(mode="json")}}
    assert choose_profile(own, ResourcesConfig(memory_gib=4), profile="mine")["tokens_per_second"] == 7_000
    with pytest.raises(ConfigError, match="no profile 'balancd'") as refused:
        choose_profile(MEASURED, ResourcesConfig(memory_gib=4), profile="balancd")
    assert "did you mean balanced?" in refused.value.fix
    with pytest.raises(ConfigError, match="did you mean fast"):
        load_config(None, ["plan.profile=fats"])
    assert load_config(None, ["plan.profile=m", "calibrate.profiles.m.choose=leanest"]).plan.profile == "m"
    assert become(built_in_profiles()["fast"], {"profiles": [{"error": "x"}]}, 1e12) is None


def test_the_table_tells_what_each_became() -> None:
    table = {row["profile"]: row for row in profile_table(MEASURED, ResourcesConfig(memory_gib=1.1), batch_tokens=8192)}
    assert list(table) == ["fast", "balanced", "quality", "memory_efficient"]
    assert (table["fast"]["micro_batch"], table["fast"]["accumulation"], table["fast"]["threads"]) == (4, 8, 2)
    small = profile_table(MEASURED, ResourcesConfig(memory_gib=0.1), batch_tokens=8192)
    assert not any(row["fits"] for row in small)


def test_the_plan_follows_the_profile(tmp_path: Path) -> None:
    lean = {**point(4, "bf16", 6_000.0, 0.5, again=True)}
    del lean["peak_memory_bytes"]  # there was no time to measure it: the estimate stands for it
    calibrated = CALIBRATED | {"variants": [lean], "attention": "eager"}
    made = make_plan(tmp_path, calibrated=calibrated, plan=PlanConfig(profile="memory_efficient"), train=TrainConfig()).details
    assert (made["profile"], made["activation_checkpointing"], made["attention"]) == ("memory_efficient", True, "eager")
    assert made["tokens_per_second"] == 6_000
    assert made["promises"]["peak_memory_bytes"]["value"] == pytest.approx(0.5 * GIB, rel=1e-4)
    assert [row["profile"] for row in made["profiles"]] == ["fast", "balanced", "quality", "memory_efficient"]


@pytest.mark.parametrize(("hours", "configured", "expected"), [(0.075, 30, 10), (0.4, 8, 8), (0.5, 600, 54), (12, 8, 8)])
def test_calibration_costs_a_bounded_share_of_the_window(hours: float, configured: float, expected: float) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime(2026, 1, 1, tzinfo=UTC)
    services = Services(clock=lambda: now, started=now, deadline=now + timedelta(hours=hours))
    assert seconds_allowed(services, configured) == pytest.approx(expected)
    assert seconds_allowed(Services(), configured) == configured


def test_a_real_calibration_keeps_its_time_and_says_how_good_its_estimates_are(tmp_path: Path) -> None:
    config = Config(calibrate=CalibrateConfig(seconds=1.5, micro_batches=[2, 4], profiles={"own": ProfileConfig(micro_batch=2)}))
    details = run_until(tmp_path, "calibrate", config)["calibrate"].details
    assert details["seconds_allowed"] == 1.5
    assert all("tokens_per_second" in p or "not measured" in p["error"] for p in details["profiles"])
    told = next(p for p in details["profiles"] if not p["error"])
    assert sum(told["memory_terms"].values()) == told["estimated_bytes"]
    assert told["memory_error"] == pytest.approx(told["estimated_bytes"] / told["peak_memory_bytes"] - 1, abs=1e-3)
    assert told["memory_terms"]["program"] > 200 << 20
    assert told["memory_share"] == pytest.approx(told["peak_memory_bytes"] / told["formula_bytes"], abs=1e-3)
    assert details["guessed_memory_share"]["runs"] == []
    (lean,) = details["variants"]
    assert lean["activation_checkpointing"]
    assert details["threads"] >= 1
    assert choose_profile(details, ResourcesConfig(memory_gib=64), profile="own")["micro_batch"] == 2
