"""Scaling laws against published numbers."""

import pytest

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.planning import laws

# Best learning rates of an independent public grid (Llama architecture, AdamW): (N, D, learning rate).
INDEPENDENT_GRID = [
    (46_006_272, 127_991_808, 0.001953),
    (109_051_904, 1_023_934_464, 0.001953),
    (368_050_176, 1_023_934_464, 0.000977),
    (872_415_232, 1_023_934_464, 0.000691),
]


@pytest.mark.parametrize(("parameters", "tokens", "best"), INDEPENDENT_GRID)
def test_step_law_meets_an_independent_grid_within_half_and_twice(parameters, tokens, best):
    assert 0.5 < laws.step_law_learning_rate(parameters, tokens) / best < 2


def test_step_law_numbers():
    assert laws.step_law_learning_rate(1e9, 1e11) == pytest.approx(1.64e-3, rel=0.01)
    assert laws.step_law_batch_tokens(1e11) == pytest.approx(1.11e6, rel=0.01)


def test_loss_law_has_its_minimum_where_the_closed_form_says():
    flops = 5.76e23  # Chinchilla's budget
    best = laws.optimal_parameters(flops)

    def loss_at(parameters):
        return laws.loss(parameters, flops / 6 / parameters)

    assert loss_at(best) <= min(loss_at(best * 0.97), loss_at(best * 1.03))
    tokens = flops / 6 / best
    assert 15 < tokens / best < 30  # about 20 tokens a parameter
    assert laws.training_flops(best, tokens) == pytest.approx(flops)
    assert laws.optimal_parameters(10 * flops) / best == pytest.approx(10**0.513, rel=0.01)


def test_outside_its_range_a_law_says_so_and_the_rate_is_kept_usable():
    tiny = laws.learning_rate(2e6, 5e6, start="scratch", lora=False)
    assert tiny.value == laws.LEARNING_RATE_RANGE[1]
    assert "extrapolated" in tiny.why
    assert "kept within" in tiny.why
    inside = laws.learning_rate(5e8, 1e10, start="scratch", lora=False)
    assert inside.value == laws.step_law_learning_rate(5e8, 1e10)
    assert "extrapolated" not in inside.why


def test_continuing_a_model_starts_far_lower():
    assert laws.learning_rate(2e6, 5e6, start="/models/x", lora=False).value == pytest.approx(5e-4)
    assert 1e-5 <= laws.learning_rate(7e9, 1e7, start="/models/x", lora=False).value <= 5e-5
    assert 1e-5 <= laws.learning_rate(1e9, 1e9, start="/models/x", lora=False).value <= 5e-5
    assert laws.learning_rate(2e6, 5e6, start="/models/x", lora=True).value == 2e-4


def test_a_model_larger_than_the_machine_is_refused_before_any_work(tmp_path):
    from search_toy import Config, run_stages

    from pipeline_lib.workspace.workspace import Workspace

    huge = Config(model=ModelConfig(width=65536, depth=400, heads=64, ffn_width=262144))
    with pytest.raises(RefusedError, match="GiB even with the smallest profile"):
        run_stages(Workspace.open(tmp_path), {}, "calibrate", huge, services=None)


def test_size_advice_names_the_optimum_and_its_range():
    best = laws.optimal_parameters(6 * 1e9 * 2e10)
    assert "by 0.0%" in laws.size_advice(best, 2e19 / best)
    wasteful = laws.size_advice(1e10, 2e9)
    assert f"{best:.2g} parameters" in wasteful
    assert "by 0.0%" not in wasteful
    assert "extrapolated" not in wasteful
    assert "extrapolated" in laws.size_advice(2e6, 5e6)


def test_advice_carries_formula_source_and_range():
    inside = {row["what"]: row for row in laws.advice(5e8, 1e10)}
    assert inside["learning rate"]["value"] == pytest.approx(laws.step_law_learning_rate(5e8, 1e10), rel=1e-3)
    assert inside["batch"]["value"] == pytest.approx(laws.step_law_batch_tokens(1e10), rel=1e-3)
    assert inside["size"]["value"] * inside["data"]["value"] == pytest.approx(5e18, rel=1e-3)
    enough = laws.tokens_for(5e8)
    assert laws.optimal_parameters(laws.training_flops(5e8, enough)) == pytest.approx(5e8)
    assert all(row["formula"] and "arXiv" in row["source"] and not row["remark"] for row in inside.values())
    assert "extrapolated" in next(row["remark"] for row in laws.advice(2e6, 5e6) if row["what"] == "batch")
