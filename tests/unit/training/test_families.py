"""Every kind of model family: tested for isolation, trained, saved, read back, and asked to go on with a text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from training_toy import PLAN, TINY

from pipeline_lib.config.model import EarlyStoppingConfig, ModelConfig, TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.pretrained import read_model
from pipeline_lib.training.clipping import LEAST_SEEN, Clipping
from pipeline_lib.training.data import RandomSequences, collate
from pipeline_lib.training.hooks import CONTINUE, Decision
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.model import build_model, export_model
from pipeline_lib.training.objective import Objective
from pipeline_lib.training.optimizers import Joined
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.reaction import LEAST, RateReaction
from pipeline_lib.training.scaling import FIRST, GROWTH_STEPS, LossScale
from pipeline_lib.training.stopping import EarlyStopping

FAMILIES = {
    "llama": "packed", "qwen2": "packed", "mistral": "packed", "phi": "packed", "mixtral": "packed", "qwen3_moe": "packed",
    "mamba": "rows", "lfm2": "rows", "recurrent_gemma": "rows",
}  # fmt: skip
MIXTURES = {"mixtral", "qwen3_moe"}
DEPTHS = {"lfm2": 3, "recurrent_gemma": 3}  # layers until one of each kind is there


def build(family: str, **changes: object) -> torch.nn.Module:
    model = ModelConfig(**{**TINY.model_dump(), "family": family, "depth": DEPTHS.get(family, 1), "experts": 4, **changes})
    return build_model(model, vocabulary_size=64, sequence_length=32, seed=0)  # type: ignore[no-any-return]


def session_of(model: torch.nn.Module, folder: Path, train: TrainConfig | None = None, **changes: object) -> Session:
    plan = TrainingPlan.from_details({**PLAN, "steps": 8, "decay_steps": 2, "micro_batch": 4, **changes})
    return Session(model, plan, train or TrainConfig(), RandomSequences(64, 32, sequences=4), 0, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_is_saved_read_back_and_goes_on(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    session = session_of(build(family), tmp_path / "work")
    assert session.isolation.mode == FAMILIES[family]
    batch = collate([session.data[place] for place in range(4)])  # type: ignore[arg-type]
    before = float(session.objective(batch).detach())
    assert (float(session.objective.balance.detach()) > 0) is (family in MIXTURES)
    fit(session, [])
    assert float(session.objective(batch).detach()) < 0.97 * before
    export_model(session.model, tmp_path / "model")
    loaded, asked = read_model(tmp_path / "model"), torch.tensor([[1, 2, 3]])
    trained = session.model.eval()
    wanted = trained(input_ids=asked, use_cache=False).logits
    torch.testing.assert_close(loaded(input_ids=asked, use_cache=False).logits, wanted, rtol=1e-5, atol=1e-5)
    assert loaded.generate(asked, max_new_tokens=2, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packs_taken_apart_give_each_document_alone(precision: str) -> None:
    """For a model that leaks, sum, losses and gradients are those of its documents one by one, in the places of the packs."""
    model = build("mamba")
    batch = collate([RandomSequences(64, 32, sequences=4)[place] for place in range(4)])
    batch["position_ids"][1] = torch.cat([torch.arange(5), torch.arange(26), torch.arange(1)])  # and one of a single token
    batch["labels"][2, 20:] = -100
    batch["labels"][batch["position_ids"] == 0] = -100
    objective = Objective(model, precision, apart=True)
    total = objective(batch)
    total.backward()
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    packed = Objective(model, precision)
    alone = torch.zeros(())
    for row in range(4):
        starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 32]
        for first, last in pairwise(starts):
            one = {name: batch[name][row : row + 1, first:last] for name in ("input_ids", "labels", "position_ids")}
            alone = alone + packed(one)
            torch.testing.assert_close(
                objective.losses[row, first:last], packed.losses[0], rtol=2e-2, atol=2e-2 if precision == "bf16" else 1e-5
            )
    alone.backward()
    assert float(total.detach()) == pytest.approx(float(alone.detach()), rel=1e-6 if precision == "fp32" else 2e-3)
    if precision == "fp32":
        for found, p in zip(ours, (p for p in model.parameters() if p.grad is not None), strict=True):
            torch.testing.assert_close(found, p.grad, rtol=1e-3, atol=1e-4)
    assert abs(float((packed(batch) - alone).detach())) > 0.01  # read as packs it is another loss: they are not the same thing


def test_an_accepted_leak_reads_packs(tmp_path: Path) -> None:
    session = session_of(build("mamba"), tmp_path, TrainConfig(isolation="accepted_leak"))
    assert (session.isolation.mode, session.objective.apart) == ("accepted_leak", False)


def test_experts_are_balanced_in_training_and_the_loss_that_is_told_stays_the_cross_entropy(tmp_path: Path) -> None:
    session = session_of(build("mixtral"), tmp_path, steps=1, decay_steps=0)
    batch = next(iter(collate([session.data[place] for place in (0, 1, 2, 3)]) for _ in "1"))  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = float(session.objective(batch)) / int((batch["labels"][:, 1:] != -100).sum())
        assert float(session.objective.balance) == 0
    fit(session, [])
    assert float(session.loss) == pytest.approx(wanted, rel=1e-5)


def test_muon_turns_hidden_matrices_only(tmp_path: Path) -> None:
    model = build("llama")
    session = session_of(model, tmp_path, TrainConfig(optimizer="muon"))
    assert isinstance(session.optimizer, Joined)
    muon, adam = session.optimizer.parts
    turned = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in turned}
    assert len(names) == 7
    assert all(".layers." in name and name.endswith("proj.weight") for name in names)
    rest = sum(len(group["params"]) for group in adam.param_groups)
    assert len(names) + rest == len(list(model.parameters()))


def test_adaptive_clipping_clips_at_the_quantile_and_never_above_the_limit() -> None:
    clip = Clipping(TrainConfig(clipping="adaptive", max_grad_norm=5.0, clip_quantile=0.5), torch.device("cpu"))
    weight = torch.nn.Parameter(torch.zeros(1))
    for number in range(LEAST_SEEN):
        weight.grad = torch.tensor([10.0 if number < 2 else 1.0])
        clip([weight])
        assert float(weight.grad) == pytest.approx(5.0 if number < 2 else 1.0, rel=1e-5)
    weight.grad = torch.tensor([4.0])
    assert float(clip([weight])) == 4.0
    assert float(weight.grad) == pytest.approx(1.0, rel=1e-5)
    weight.grad = torch.tensor([torch.nan])
    clip([weight])
    assert int(clip.seen) == LEAST_SEEN + 1


def test_the_loss_scale_halves_on_overflow_and_grows_again() -> None:
    scale = LossScale(torch.device("cpu"))
    good, bad = torch.tensor(True), torch.tensor(False)
    assert bool(scale.update(bad))
    assert float(scale.scale) == FIRST / 2
    for _ in range(GROWTH_STEPS):
        assert not bool(scale.update(good))
    assert (float(scale.scale), int(scale.good)) == (FIRST, 0)
    scale.scale.fill_(1.0)
    assert not bool(scale.update(bad))  # nothing left to halve: this gradient is at fault itself


def test_a_gradient_that_overflows_fp16_costs_a_step_and_is_no_fault(tmp_path: Path) -> None:
    session = session_of(build("llama"), tmp_path, precision="fp16", steps=3, decay_steps=0)
    assert session.scale is not None
    session.scale.scale.fill_(2.0**24)
    before = [p.detach().clone() for p in session.model.parameters()]
    found = []

    class Notes(RateReaction):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            same = all(torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))
            found.append((bool(session.finite), same, float(session.scale.scale)))  # type: ignore[union-attr]

    fit(session, [Notes(session, lambda kind, **detail: None)])
    assert found[0] == (True, True, 2.0**23)
    assert all(bool(torch.isfinite(p).all()) for p in session.model.parameters())


def test_the_rate_gives_way_while_the_loss_rises_within_bounds_and_its_state_survives(tmp_path: Path) -> None:
    events: list[float] = []
    session = session_of(build("llama"), tmp_path, steps=5000, warmup_steps=0)
    react = RateReaction(session, lambda kind, **detail: events.append(detail["factor"]))
    for step in range(1, 1500):
        session.step = step
        session.loss = torch.tensor(3.0 + (0.01 * (step - 150) if step > 150 else 0.0))
        react.on_step_end(None, None, None)
        if step == 400:
            again = RateReaction(session, react.event)
            again.restore(react.state())
            assert torch.equal(again.means, react.means)
            react = again
    assert events[0] == 0.8
    assert min(events) == LEAST == session.rates["reaction"]
    assert session.optimizer.param_groups[0]["lr"] == pytest.approx(LEAST * session.plan.learning_rate)
    for step in range(1500, 2600):
        session.step, session.loss = step, torch.tensor(3.0)
        react.on_step_end(None, None, None)
    assert session.rates["reaction"] == 1.0


class Asked:
    """A controller that notes what it is asked."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def ask_for_decay(self, reason: str) -> None:
        self.reasons.append(reason)

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        return CONTINUE

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: object) -> None:
        return None


def test_early_stopping_asks_once_after_enough_evaluations_and_steps_across_a_resume(tmp_path: Path) -> None:
    session, asked, curve = session_of(build("llama"), tmp_path), Asked(), []
    config = EarlyStoppingConfig(patience=3, min_gain=0.01, smoothing=1.0, min_steps=70)

    def stopping() -> EarlyStopping:
        return EarlyStopping(session, config, lambda: curve, asked, lambda kind, **detail: None)

    now = stopping()
    for number, loss in enumerate([4.0, 3.0, 2.99, 2.98, 2.98, 2.97, 2.97, 2.97, 1.0]):
        session.step = 10 * (number + 1)
        curve.append([session.step, loss])
        now.on_step_end(None, None, None)
        now.on_step_end(None, None, None)  # a step without an evaluation counts for nothing
        after, state = stopping(), now.state()
        after.restore(state)
        assert after.state() == state
        now = after
        assert len(asked.reasons) == (1 if session.step >= 70 else 0)


def test_what_a_family_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no backward pass on processors"):
        session_of(build("llama"), tmp_path, attention="flex_attention")
    with pytest.raises(ValueError, match="more than experts = 4"):
        build("mixtral", experts_per_token=5)


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen3", {"heads": 4, "kv_heads": 2}), ("mixtral", {})])
def test_attention_document_by_document_is_the_masked_one(family: str, changes: dict[str, int], tmp_path: Path) -> None:
    """Losses, gradients, and a text that is gone on with."""
    gradients, batch = [], collate([RandomSequences(64, 32)[place] for place in range(3)])
    for attention in ("sdpa", "varlen"):
        session = session_of(build(family, **changes), tmp_path, attention=attention)
        assert (session.model.config._attn_implementation, session.isolation.mode) == (attention, "packed")
        session.objective(batch).backward()
        gradients.append([p.grad for p in session.model.parameters()])
        asked = torch.tensor([[1, 2, 3]])
        text = session.model.eval().generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=4)
        gradients[-1].append(text)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "recurrent_gemma"])
def test_attention_that_would_be_another_one_is_refused(family: str, tmp_path: Path) -> None:
    """A window, a cap on the scores, a family that has an attention of its own only."""
    with pytest.raises(ConfigError, match=r"has no attention varlen here|does not let its attention be chosen"):
        session_of(build(family), tmp_path, attention="varlen")


def test_head_and_loss_by_compiled_backbone_and_with_activations_made_twice_are_the_same(tmp_path: Path) -> None:
    model = build("llama")
    batch = collate([RandomSequences(64, 32)[place] for place in range(2)])
    plain = Objective(model, "fp32")(batch)
    plain.backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    twice = session_of(model, tmp_path, TrainConfig(activation_checkpointing=True)).objective(batch)
    twice.backward()
    assert float(twice) == float(plain)
    for ours, p in zip(wanted, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, ours)
    logits = model.eval()(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    whole = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    assert float(plain) == pytest.approx(float(whole), rel=1e-5)
