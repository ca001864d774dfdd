"""Sections of tokens, model, training and what plans them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.profiles import ProfileConfig
from pipeline_lib.config.recovery import RecoveryConfig

Optimizer = Literal["adamw", "muon", "adafactor", "adamw_8bit", "lamb", "lars"]
Launcher = Literal["own", "torchrun", "external"]
Isolation = Literal["auto", "rows", "accepted_leak"]
Precision = Literal["fp32", "bf16", "fp16"]  # the last two: autocast over fp32 weights; fp16 with a dynamic loss scale


class TokenizerConfig(Section):
    """The tokenizer: trained on the selection, or taken from elsewhere."""

    source: str = setting(
        "train",
        "`train`, `champion`, a folder with tokenizer.json or that file, or `hf://organisation/name@commit` of the hub",
        path=("train", "champion"),
    )
    vocabulary_size: int = setting(
        4096,
        "Entries of a trained vocabulary",
        unit="tokens",
        ge=300,
        le=262144,
        why="small corpora and small models: the embedding must not eat the parameters",
    )


class PackConfig(Section):
    """Tokenise and pack documents into fixed-length sequences."""

    sequence_length: int = setting(256, "Tokens in a packed sequence", unit="tokens", ge=16, le=131072)
    range_tokens: int = setting(
        1 << 20, "Source range of a chunk", unit="tokens", ge=1024, le=1 << 26, why="≥ 256 × length fills ≥ 99.4 %"
    )
    codec: Literal["lz4", "zstd", "none"] = setting("lz4", "Compression of the Arrow IPC buffers")
    parent: str = setting(
        "none",
        "`previous`: continue the champion's cache with its tokenizer, packing only what is new; `none`: pack afresh",
        why="what was packed stays packed; documents that are no longer selected leave the order at once and the bytes with the "
        "next fresh cache (by itself when they are a quarter of it)",
    )


class FillGapsConfig(Section):
    """Verify every chunk of the cache and remake exactly the missing or damaged ones."""

    full: bool = setting(False, "Digest every chunk even if size, time and inode are unchanged", identity=False)


class ModelConfig(Section):
    """The model: built from these numbers, or continued from a folder or the champion."""

    start: str = setting(
        "scratch",
        "`scratch`, `champion`, a folder with a safetensors checkpoint, or `hf://organisation/name@commit` of the hub",
        path=("scratch", "champion"),
    )
    family: str = setting("llama", "Model family (transformers model type), or one registered by an extension")
    width: int = setting(192, "Hidden size", unit="features", ge=16)
    depth: int = setting(4, "Layers", unit="layers", ge=1)
    heads: int = setting(4, "Attention heads", ge=1)
    kv_heads: int = setting(0, "Key/value heads; 0: as many as heads", ge=0)
    ffn_width: int = setting(512, "Inner width of the feed-forward block, or of an expert", unit="features", ge=16)
    experts: int = setting(8, "Experts of a mixture, where the family is one", ge=2)
    experts_per_token: int = setting(2, "Experts of a mixture that a token goes through", ge=1)
    tied_embeddings: bool = setting(True, "Input and output embeddings are one matrix")
    dropout: float = setting(0.0, "Dropout, wherever the family has it", ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.width % self.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            best = min(near, key=lambda h: abs(h - self.heads))
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}; {best} heads would")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token} is more than experts = {self.experts}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        return self


class LoraConfig(Section):
    """Low-rank adaptation instead of full training."""

    rank: int = setting(0, "Rank; 0: full training", ge=0, le=512)
    alpha: float = setting(32.0, "Scale (alpha / rank multiplies the update)", gt=0)
    dropout: float = setting(0.05, "Dropout on the adapter's input", ge=0, lt=1)
    targets: list[str] = setting(lambda: ["q_proj", "k_proj", "v_proj", "o_proj"], "Module names the adapter is put on")
    quantize: Literal["none", "4bit"] = setting(
        "none",
        "4bit: frozen matrices in NF4 (QLoRA), 4.5 bits a weight, slower steps; adapters are merged into what the bits give",
    )

    @model_validator(mode="after")
    def _only_frozen_weights_are_quantized(self) -> LoraConfig:
        if self.quantize != "none" and not self.rank:
            raise ValueError("quantize = 4bit needs adapters to train beside the frozen weights; set rank, for example to 16")
        return self


class EarlyStoppingConfig(Section):
    """When a dev loss that falls no more begins the final decay; it never cuts a training off."""

    patience: int = setting(0, "Evaluations without a gain after which the decay begins; 0: off", unit="evaluations", ge=0)
    min_gain: float = setting(0.002, "Fall of the smoothed dev loss that counts as a gain", unit="share", ge=0, lt=1)
    smoothing: float = setting(0.5, "Weight of the latest evaluation in the smoothed dev loss", gt=0, le=1)
    min_steps: int = setting(100, "Optimizer steps before which nothing is stopped", unit="steps", ge=0)


class SamplesConfig(Section):
    """What the model writes at every evaluation, the same prompts each time: to be read, not scored."""

    prompts: list[str] = setting(
        lambda: ["The", "In the beginning", "There are three reasons why", "Question: What is water?\nAnswer:"],
        "Texts to go on from; []: none",
        max_length=64,
    )
    tokens: int = setting(24, "Length of a sample", unit="tokens", ge=1, le=1024, why="costs as many passes of short texts")


class TrainConfig(Section):
    """Training on transformers.Trainer."""

    learning_rate: float = setting(0.0, "Peak learning rate; 0: the search or the scaling law decides", ge=0, lt=1)
    batch_tokens: int = setting(8192, "Tokens in an optimizer step; the plan may rescale it", unit="tokens", ge=16)
    weight_decay: float = setting(0.1, "Decoupled weight decay", ge=0, le=1)
    beta2: float = setting(0.95, "Second Adam moment", gt=0, lt=1, why="0.95 is usual for language models at small batch")
    max_grad_norm: float = setting(1.0, "Gradient clipping", gt=0)
    clipping: Literal["fixed", "adaptive"] = setting(
        "fixed", "Clip at max_grad_norm, or at a running quantile of the norms seen so far (at most max_grad_norm)"
    )
    clip_quantile: float = setting(0.9, "Quantile of the latest 256 gradient norms, where adaptive clipping clips", gt=0, lt=1)
    optimizer: Optimizer = setting(
        "adamw", "Optimizer; Muon turns the hidden matrices and leaves the rest to AdamW; adamw_8bit needs the extra `eightbit`, "
        "lamb and lars the extra `optimizers`",
    )  # fmt: skip
    schedule: Literal["wsd", "linear", "cosine"] = setting("wsd", "Learning-rate schedule; a cosine is refused under a window")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 where calibration finds it faster; fp16 has a dynamic loss scale (slow on processors)"
    )
    rate_reaction: bool = setting(
        False, "Lower the learning rate while the training loss rises, and raise it again when it falls; never below a quarter"
    )
    early_stopping: EarlyStoppingConfig = setting(EarlyStoppingConfig, "When dev loss falls no more")
    attention: Literal["auto", "sdpa", "eager", "varlen", "flex_attention"] = setting(
        "auto", "Attention; auto: the fastest here of those that keep packed documents apart, by calibration; varlen: document "
        "by document; flex_attention: on GPUs",
    )  # fmt: skip
    isolation: Isolation = setting(
        "auto", "auto: packs, or one document a row where a family cannot keep packed documents apart; rows: always one document "
        "a row (padded, slower); accepted_leak: always packs, and the model card says so",
    )  # fmt: skip
    compile: bool = setting(False, "Compile the model with torch.compile: minutes at the start, faster steps on GPUs")
    activation_checkpointing: bool = setting(False, "Compute activations twice rather than keep them: less memory, slower steps")
    max_steps: int = setting(0, "Stop after this many optimizer steps; 0: the window decides", unit="steps", ge=0)
    max_epochs: float = setting(
        4.0,
        "At most this many passes over the data",
        unit="epochs",
        gt=0,
        why="up to 4 epochs are almost as good as new data (Muennighoff et al. 2023)",
    )
    evaluate_every: int = setting(0, "Steps between dev evaluations; 0: planned", unit="steps", ge=0)
    save_every: int = setting(0, "Steps between checkpoints; 0: planned", unit="steps", ge=0)
    parent: str = setting(
        "none",
        "`checkpoint:<digest>`: go on from this checkpoint, in a run of its own (`millrace train --from` sets it); or `none`",
        pattern=r"^(none|checkpoint:[0-9a-f]{32})$",
    )
    keep_checkpoints: int = setting(
        2, "Newest checkpoints that are kept while training; the last one is published", ge=2, identity=False
    )
    milestone_every: int = setting(
        0, "Steps between checkpoints that stay for good, beside the newest, the best and the last before the decay; 0: none",
        unit="steps", ge=0, identity=False,
    )  # fmt: skip
    lora: LoraConfig = setting(LoraConfig, "Low-rank adaptation")
    samples: SamplesConfig = setting(SamplesConfig, "Samples at evaluations", identity=False)
    recovery: RecoveryConfig = setting(RecoveryConfig, "What is done when something goes wrong: changes of the policy table")
    processes: int = setting(
        1,
        "Processes that train together, on one machine: one a GPU, or sharing the processor's cores",
        ge=1,
        le=64,
        identity=False,
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", "With several processes: every one holds the whole model (ddp), or each a part of weights and optimizer (fsdp)",
        identity=False,
    )  # fmt: skip
    launcher: Launcher = setting(
        "own", "With several processes: who starts them. own, torchrun: the stage does, on this machine; external: you do, on "
        "machines that share the workspace's folder: the stage says with which command, and waits",
        identity=False,
    )  # fmt: skip
    stall_seconds: float = setting(
        600.0, "With several processes: without any sign of life for so long, all are ended and launched again", unit="seconds",
        gt=1, identity=False,
    )  # fmt: skip

    @model_validator(mode="after")
    def _decay_can_begin(self) -> TrainConfig:
        if self.schedule == "cosine" and self.early_stopping.patience:
            raise ValueError("early_stopping begins the decay, and a cosine decays from the start; use schedule wsd or linear")
        return self


class CalibrateConfig(Section):
    """Measure what this machine does with this model."""

    seconds: float = setting(
        8.0, "Time for all measurements together; never more than 3 % of a window of half an hour, or 10 s of a shorter one",
        unit="seconds", gt=0, le=3600,
    )  # fmt: skip
    micro_batches: list[int] = setting(lambda: [4, 8, 16], "Micro-batch sizes to try", unit="sequences", min_length=1)
    profiles: dict[str, ProfileConfig] = setting(
        dict, "Profiles of your own, beside or in place of fast, balanced, quality and memory_efficient"
    )


class TuneConfig(Section):
    """Hyperparameter search on Optuna."""

    trials: int = setting(4, "Trials; 0: no search, the scaling law decides", unit="trials", ge=0, le=10000)
    steps: int = setting(0, "Optimizer steps of a trial; 0: what the search's share of the window allows", unit="steps", ge=0)
    sampler: Literal["quick_gp", "tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "grid", "random"] = setting(
        "quick_gp",
        "Who proposes points; quick_gp: a Gaussian process that takes milliseconds (with several objectives tpe stands in), gp: "
        "Optuna's; cmaes searches factors only (choices at random), nsga2 and nsga3 are for several objectives",
    )
    grid_points: int = setting(3, "Of each factor range, for the sampler grid", ge=2, le=100)
    pruner: Literal["median", "asha", "hyperband", "wilcoxon", "none"] = setting(
        "median", "When a trial ends early, by the tokens it has seen: worse than the median; not among the best `1/reduction` "
        "(asha, hyperband: what was put aside goes on when it is); surely worse than the best, sequence by sequence (wilcoxon)",
    )  # fmt: skip
    reduction: float = setting(
        3.0,
        "A rung reads at this many times the tokens of the one before",
        ge=1.5,
        le=10,
        why="Li et al. 2020 (ASHA) use 3 and 4",
    )
    rungs: int = setting(3, "Readings of a trial with a pruner, at most, the last at its full length", ge=1, le=8)
    objectives: list[Literal["dev_loss", "speed", "memory", "cost"]] = setting(
        lambda: ["dev_loss"],
        "What is sought; with several, no trial is pruned, and the report has the Pareto front",
        min_length=1,
    )
    repeats: int = setting(1, "Further seeds of the best point and of the default, to tell a gain from luck", ge=0, le=20)
    warm_start: int = setting(2, "Best points of similar past searches that are tried first; 0: none", ge=0, le=50)
    parallel: int = setting(
        1, "Trials side by side, each in a process of its own with its share of the cores", ge=1, le=64, identity=False
    )
    storage: Literal["journal", "sqlite"] = setting(
        "journal",
        "What kind of file holds the study ($MILLRACE_OPTUNA_URL names a database instead)",
        identity=False,
        why="a journal takes 1 ms a trial, SQLite 20 to 40",
    )
    max_parameters: int = setting(0, "Parameters of a searched architecture, at most; 0: a tenth above the configured one", ge=0)
    space: dict[str, tuple[float, float]] = setting(
        lambda: {"learning_rate": (0.5, 2.0), "weight_decay": (0.3, 3.0)},
        "What is searched: a factor range around the scaling law's or the configured value of learning_rate, weight_decay, "
        "batch_tokens, warmup_share, max_grad_norm, lora_alpha, lora_dropout",
    )
    choices: dict[str, list[int | str]] = setting(
        dict,
        "Values to choose among, the configured one with them: optimizer, schedule, clipping, lora_rank, depth, width, heads",
    )

    @model_validator(mode="after")
    def _enough_to_compare(self) -> TuneConfig:
        if self.trials == 1:
            raise ValueError(
                "one trial is the default alone: nothing is compared; set trials to 2 or more, or to 0 for no search"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives name one twice: {', '.join(self.objectives)}")
        if self.sampler == "cmaes" and len(self.objectives) > 1:
            raise ValueError("cmaes seeks one objective; use tpe, gp, nsga2 or nsga3 for several")
        return self


class PlanConfig(Section):
    """Fit the training into the window."""

    priority: Literal["speed", "balanced", "quality"] = setting("balanced", "What gives way first when time is short")
    profile: str = setting(
        "auto", "How the machine is used: fast, balanced, quality, memory_efficient, one of calibrate.profiles; auto: by priority"
    )
    decay_share: float = setting(
        0.2, "Share of the steps in the final decay", unit="share", gt=0, le=1, why="WSD with a 10-20 % (1-sqrt) decay"
    )
    warmup_share: float = setting(
        0.025, "Warm-up, share of the steps that all allowed passes over the data make", unit="share", ge=0, lt=1,
        why="a longer warm-up lets more of the data be read at too low a rate; never more than a tenth of the planned steps",
    )  # fmt: skip
    replan: bool = setting(True, "Adapt the planned end to the measured speed while training")


class ValidationConfig(Section):
    """Score the model and compare it."""

    language_tokens: int = setting(
        150_000,
        "Test text that is scored, shared by the domains",
        unit="tokens",
        ge=1000,
        why="about 10 s for 3 M parameters on two cores",
    )
    batch_tokens: int = setting(
        1024, "Tokens scored at once; on a GPU 32 times as many", unit="tokens", ge=256, identity=False,
        why="what a layer makes of them stays in a CPU's cache: 4,096 take half as long again",
    )  # fmt: skip
    bootstrap: int = setting(1000, "Bootstrap resamples for 95 % intervals", ge=100, le=100000)
    robustness_items: int = setting(
        20, "Items of each suite with prompts that are asked again with perturbed prompts; 0: none", ge=0,
        why="six perturbations of 20 items of four suites cost about as much as 480 items",
    )  # fmt: skip
    samples: int = setting(4, "Texts that the model writes for people to read; 0: none", unit="texts", ge=0, le=1000)
    sample_tokens: int = setting(48, "Length of each of these texts, at most", unit="tokens", ge=1, le=10000)


class GateRule(Section):
    """What a model must keep or reach beside the metric that decides."""

    score: str = setting("bits_per_byte", "A suite, or a domain or task of one: earth, earth/geographic, bits_per_byte/prose")
    most_fall: float | None = setting(
        None,
        "Refused when surely worse than the champion by more than this: points of a share (preferences: more stereotyped ones) "
        "or a share of bits per byte",
        ge=0,
        lt=1,
    )
    at_least: float | None = setting(None, "Refused when it is sure that the score is below this (bits per byte: above)")

    @model_validator(mode="after")
    def _asks_something(self) -> GateRule:
        if self.most_fall is None and self.at_least is None:
            raise ValueError("a rule needs most_fall or at_least")
        return self


KEPT = ("grammar", "knowledge", "earth", "people_pairs", "pronouns")  # suites in which no new champion may fall far


class GateConfig(Section):
    """When a model becomes the champion."""

    metric: str = setting("bits_per_byte", "Score on the test side that decides")
    min_gain: float = setting(0.0, "Relative gain over the champion that is asked for", unit="share", ge=0, lt=1)
    rules: list[GateRule] = setting(
        lambda: [GateRule(score=name, most_fall=0.05) for name in KEPT],
        "What must hold beside the metric; intervals are widened for their number",
        why="a model that reads the test text better is no gain when it forgot what it knew, or learned a prejudice",
    )
    most_contaminated: float = setting(
        0.1, "Refused when its training text contains more than this share of the items that decide", unit="share", ge=0, le=1,
        why="below it the items that it contains are left out of the comparison; above, something is wrong with the data",
    )  # fmt: skip
    lookback_nights: int = setting(
        30, "The new model must also not be surely worse than the champion of so many nights ago; 0: is not asked", ge=0,
        why="small losses that no single night shows would add up",
    )  # fmt: skip
    approval: bool = setting(False, "Ask a person before promotion")
    approval_minutes: float = setting(60.0, "Time for the answer", unit="minutes", gt=0, identity=False)
    approval_default: Literal["promote", "keep"] = setting("keep", "What happens when nobody answers")


class ReportConfig(Section):
    """What the report shows."""

    examples: Literal["none", "redacted", "full"] = setting("redacted", "Text examples from the data", identity=False)
