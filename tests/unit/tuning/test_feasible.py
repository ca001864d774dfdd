"""What the estimate refuses: by arithmetic, with the number and the limit, before a trial costs anything."""

from dataclasses import replace

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.tuning.budget import TrialPlan
from pipeline_lib.tuning.feasible import Setting, trial_of
from pipeline_lib.tuning.pruning import Rule

SMALL = ModelConfig(width=32, depth=2, heads=2, ffn_width=64)


def setting(tmp_path, parameters=0):
    return Setting(
        home=tmp_path, folder=tmp_path, cache="fill_gaps/none", data={"sequence_length": 64, "vocabulary_size": 400}, model=SMALL,
        real=SMALL, rows=400, train=TrainConfig(batch_tokens=512), plan=TrialPlan(4, 20, 8, 8, 0.0), rule=Rule("none", 1, 3.0),
        precision="fp32", threads=1, seed=0, memory_limit=1 << 40, most_parameters=parameters,
    )  # fmt: skip


def test_a_point_beyond_memory_or_parameters_is_refused_by_the_estimate(tmp_path):
    free = setting(tmp_path, parameters=1 << 40)
    narrow, wide = trial_of({"width": 32}, free), trial_of({"width": 128}, free)
    assert not narrow.refusal
    assert not wide.refusal
    assert narrow.memory_bytes < wide.memory_bytes
    limited = replace(free, memory_limit=(narrow.memory_bytes + wide.memory_bytes) // 2)
    assert not trial_of({"width": 32}, limited).refusal
    assert "GiB may be used" in trial_of({"width": 128}, limited).refusal
    assert f"{wide.parameters:,} parameters" in trial_of({"width": 128}, replace(free, most_parameters=narrow.parameters)).refusal
    assert "are the budget" in trial_of({"width": 128}, setting(tmp_path)).refusal, "a tenth above the configured one"
    assert not trial_of({"batch_tokens": 2.0}, setting(tmp_path)).refusal
    assert trial_of({"width": 33}, free).refusal, "heads do not divide it: what no model can be is refused, too"
