import functools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from training_toy import TINY

from pipeline_lib.config.model import LoraConfig, ModelConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.pretrained import read_model
from pipeline_lib.training.data import RandomSequences, collate
from pipeline_lib.training.four_bits import LEVELS, FourBitLinear, pack, unpack
from pipeline_lib.training.isolation import TOLERANCE, decide_isolation, packed_difference
from pipeline_lib.training.loss import IGNORED, chunked_cross_entropy
from pipeline_lib.training.model import (
    adapt,
    build_model,
    count_parameters,
    export_model,
    flops_per_token,
)
from pipeline_lib.training.objective import Objective
from pipeline_lib.training.optimizers import parameter_groups
from pipeline_lib.training.saving import load_weights, weights_of
from pipeline_lib.training.start import file_digests
from pipeline_lib.workspace.files import write_json


def tiny(**changes: object) -> ModelConfig:
    return TINY.model_copy(update=changes)


def build(model: ModelConfig = TINY, vocabulary: int = 100, **options: object) -> torch.nn.Module:
    return build_model(model, vocabulary_size=vocabulary, sequence_length=64, seed=3, **options)  # type: ignore[arg-type, no-any-return]


@pytest.mark.parametrize("bias", [False, True])
def test_chunked_loss_and_gradients_are_those_of_the_whole(bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 50, 16, requires_grad=True)  # 150 rows: two chunks of 64 and a part
    weight = torch.randn(1 << 15, 16, requires_grad=True)
    offset = torch.randn(1 << 15, requires_grad=True) if bias else None
    labels = torch.randint(1 << 15, (3, 50))
    labels[:, ::7] = IGNORED
    wanted = [hidden, weight] + ([offset] if offset is not None else [])
    chunked, each, _ = chunked_cross_entropy(hidden, weight, offset, labels)
    ours = torch.autograd.grad(chunked / 10, wanted)
    logits = functional.linear(hidden, weight, offset)[:, :-1].flatten(0, 1)
    whole = functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    theirs = torch.autograd.grad(whole / 10, wanted)
    assert float(chunked.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    targets = labels[:, 1:].flatten()
    alone = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").reshape(3, 49)
    torch.testing.assert_close(each[:, :-1], alone)
    assert not each[:, -1].any()
    likely = torch.where(torch.rand(targets.shape) < 0.5, logits.argmax(1), targets).reshape(3, 49)
    likely = torch.cat([labels[:, :1], likely.masked_fill(labels[:, 1:] == IGNORED, IGNORED)], 1)
    with torch.no_grad():
        hits = chunked_cross_entropy(hidden, weight, offset, likely)[2][:, :-1].flatten()
    assert torch.equal(hits, logits.argmax(1) == likely[:, 1:].flatten())
    assert 40 < int(hits.sum()) < 100
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "chunked"), [("llama", True), ("gpt2", True), ("gemma2", False), ("granite", False)])
def test_objective_gives_the_models_own_loss_whatever_its_head_does(family: str, chunked: bool) -> None:
    """gemma2 caps its logits, granite scales them: a plain product with the head would train another model."""
    model = build(tiny(family=family))
    if family == "granite":
        model.config.logits_scaling = 8.0
    before = [p.clone() for p in model.parameters()]
    objective = Objective(model, "fp32")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert objective.chunked is chunked
    batch = collate([RandomSequences(100, 64)[i] for i in range(4)])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        labels = batch["labels"][:, 1:].flatten()
        whole = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum")
        assert float(objective(batch)) == pytest.approx(float(whole), rel=1e-5)
    assert int((labels != IGNORED).sum()) == 4 * 62  # the first token of a document is not predicted from another one


def test_bf16_stays_near_fp32() -> None:
    model = build()
    batch = collate([RandomSequences(100, 64)[i] for i in range(4)])
    with torch.no_grad():
        assert float(Objective(model, "bf16")(batch)) == pytest.approx(float(Objective(model, "fp32")(batch)), rel=5e-3)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_packed_documents_do_not_see_each_other(family: str) -> None:
    found = decide_isolation(build(tiny(family=family)), 64)
    assert (found.mode, found.leak < 1e-5) == ("packed", True)


def test_packs_are_taken_apart_where_it_is_asked() -> None:
    assert decide_isolation(build(), 64, "rows").mode == "rows"
    assert decide_isolation(build(), 64, "accepted_leak").mode == "packed"


def test_a_planted_leak_takes_the_packs_apart_unless_it_is_accepted() -> None:
    """What the default cache or an all-ones mask does to packs: same tokens, another document's context."""
    model = build()
    inner = model.forward

    def leaking(input_ids: torch.Tensor, position_ids: torch.Tensor, **options: object) -> object:
        return inner(input_ids=input_ids, position_ids=position_ids, attention_mask=torch.ones_like(input_ids))

    model.forward = leaking  # type: ignore[method-assign, assignment]
    assert packed_difference(model, 64) > 10 * TOLERANCE
    assert decide_isolation(model, 64).mode == "rows"
    assert decide_isolation(model, 64, "accepted_leak").mode == "accepted_leak"


def test_flops_and_parameters_are_the_formula() -> None:
    model = build(tiny(tied_embeddings=False))
    attention, mlp, head = 4 * 32 * 32, 3 * 32 * 64, 100 * 32
    norms = 2 * 2 * 32 + 32
    assert count_parameters(model) == 2 * (attention + mlp) + 2 * head + norms
    assert flops_per_token(model, 64) == 6 * (2 * (attention + mlp) + head) + 2 * 12 * 32 * 64
    tied = build()
    assert flops_per_token(tied, 64) == flops_per_token(model, 64)
    assert count_parameters(tied) == count_parameters(model) - head
    decayed, plain = parameter_groups(tied, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert sum(p.numel() for p in plain["params"]) == norms


def test_an_unknown_family_gets_its_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'lama' is not") as error:
        build(tiny(family="lama"))
    assert "llama" in error.value.fix


def test_seed_makes_the_weights() -> None:
    first, second = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_lora_trains_little_and_merges_into_the_plain_model(tmp_path: Path) -> None:
    plain = build()
    before = count_parameters(plain)
    net, merged = adapt(plain, LoraConfig(rank=2, dropout=0.0))
    trained = [p for p in net.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 2 * 4 * 2 * (32 + 32)
    with torch.no_grad():
        for p in trained:
            p.add_(0.05)
    tokens = torch.arange(16).unsqueeze(0)
    adapted = net(input_ids=tokens, use_cache=False).logits
    export_model(merged(), tmp_path)
    loaded = read_model(tmp_path)
    torch.testing.assert_close(loaded(input_ids=tokens, use_cache=False).logits, adapted, rtol=1e-4, atol=1e-5)
    assert count_parameters(loaded) == before
    with pytest.raises(ConfigError, match="no module of this model is called query") as error:
        adapt(build(), LoraConfig(rank=2, targets=["query"]))
    assert "q_proj" in error.value.fix
    with pytest.raises(ConfigError, match="called quary_proj") as error:  # beside one that exists, peft would leave it out
        adapt(build(), LoraConfig(rank=2, targets=["v_proj", "quary_proj"]))
    assert "did you mean q_proj" in error.value.fix


def test_weights_in_four_bits_are_the_nearest_levels() -> None:
    """Each weight is the nearest of the 16 values that its block of 64 has; what is packed again is the same."""
    weights = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    weights[2] = 0.0
    packed, scales = pack(weights)
    assert packed.dtype is torch.uint8
    assert packed.shape == (24, 48)
    found = unpack(packed, scales)
    blocks = weights.reshape(-1, 64)
    levels = blocks.abs().amax(1)[:, None, None] * torch.tensor(LEVELS)
    nearest = (blocks[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((found.reshape(-1, 64) - blocks).abs(), nearest, rtol=0, atol=1e-6)
    assert all(map(torch.equal, pack(found), (packed, scales)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_on_weights_in_four_bits_learn_and_merge(tmp_path: Path, precision: str) -> None:
    """The frozen matrices take an eighth of the memory, adapters get gradients, the merged model is the one with adapters, and
    what a checkpoint holds is enough to make it."""
    lora = LoraConfig(rank=2, dropout=0.0, quantize="4bit")
    before = build()
    net, merged = adapt(build(), lora)
    frozen = [part for part in net.modules() if isinstance(part, FourBitLinear)]
    held = sum(part.weight.nbytes + part.scales.nbytes for part in frozen)
    whole = sum(4 * part.in_features * part.out_features for part in frozen)
    assert held == whole * 4.5 / 32
    assert len(frozen) == 7 * before.config.num_hidden_layers  # all linear layers but the head
    added = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert count_parameters(net) == count_parameters(before) + added
    assert flops_per_token(net, 32) == flops_per_token(adapt(build(), LoraConfig(rank=2))[0], 32)
    tokens = torch.arange(16).unsqueeze(0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        first = net(input_ids=tokens, labels=tokens, use_cache=False).loss
        first.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.sub_(parameter.grad)
        adapted = net(input_ids=tokens, labels=tokens, use_cache=False)
        assert adapted.loss < first
        kept = {name: tensor.clone() for name, tensor in weights_of(net).items()}
        export_model(merged(), tmp_path)
        loaded = read_model(tmp_path)(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(loaded, adapted.logits, rtol=1e-4, atol=1e-5)
        again, fold = adapt(build_model(TINY, vocabulary_size=100, sequence_length=64, seed=5), lora)
        load_weights(again, kept)
        torch.testing.assert_close(fold()(input_ids=tokens, use_cache=False).logits, adapted.logits, rtol=1e-4, atol=1e-5)


def test_a_start_is_taken_up_and_its_misfits_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    first = build()
    export_model(first, folder)
    again = build(tiny(start=str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert file_digests(model=tiny(start=str(folder))).keys() == {"config.json", "generation_config.json", "model.safetensors"}
    with pytest.raises(ConfigError, match="100 embeddings, the tokenizer 300"):
        build(tiny(start=str(folder)), vocabulary=300)
    for path, words in ((folder, {"a": 0, "b": 1}), (tmp_path, {"a": 1, "b": 0})):
        write_json(path / "tokenizer.json", {"model": {"vocab": words}, "added_tokens": []})
    with pytest.raises(ConfigError, match="2 entries differ"):
        build(tiny(start=str(folder)), tokenizer_file=tmp_path / "tokenizer.json")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no config\.json with"):
        build(tiny(start=str(pickled)))


def test_a_start_that_names_no_special_tokens_takes_the_tokenizers(tmp_path: Path) -> None:
    export_model(build(special_ids={"eos": 7}), tmp_path / "one")
    export_model(build(), tmp_path / "none")
    found = {name: build(tiny(start=str(tmp_path / name)), special_ids={"eos": 3, "pad": 4}).config for name in ("one", "none")}
    assert (found["one"].eos_token_id, found["one"].pad_token_id) == (7, 4)
    assert (found["none"].eos_token_id, found["none"].pad_token_id) == (3, 4)


def test_models_made_and_read_in_threads_keep_their_ties(tmp_path: Path) -> None:
    expected = count_parameters(build())
    export_model(build(), tmp_path)
    makers = [build if n % 2 else functools.partial(read_model, tmp_path) for n in range(16)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda make: count_parameters(make()), makers))
    assert made == [expected] * 16
    assert count_parameters(build()) == expected


def test_a_model_of_the_hub_is_one_commit_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--mill--toy" / "snapshots" / commit
    made = build()
    export_model(made, snapshot)
    pinned = tiny(start=f"hf://mill/toy@{commit}")
    read = build(pinned)
    assert all(torch.equal(ours, p) for ours, p in zip(read.parameters(), made.parameters(), strict=True))
    assert file_digests(model=pinned) == file_digests(model=tiny(start=str(snapshot)))
    assert "model.safetensors" in file_digests(model=pinned)
    for name in ("mill/toy", "mill/toy@main"):
        with pytest.raises(ConfigError, match="names no commit"):
            file_digests(model=tiny(start=f"hf://{name}"))
    with pytest.raises(ConfigError, match="the hub gives no model 'mill/other'"):
        build(tiny(start=f"hf://mill/other@{commit}"))


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        Objective(build(), "fp32", compile=True)


@pytest.mark.slow  # half a minute of compiling
def test_a_compiled_model_has_the_same_loss_and_gradients() -> None:
    model = build()
    batch = collate([RandomSequences(100, 64)[place] for place in range(2)])
    plain = Objective(model, "fp32")(batch)
    plain.backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    compiled = Objective(model, "fp32", compile=True)(batch)
    compiled.backward()
    assert float(compiled.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for ours, p in zip(wanted, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, ours, rtol=1e-3, atol=1e-5)
