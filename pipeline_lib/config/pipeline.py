"""The whole configuration of a pipeline: one section a stage, and what they share."""

from __future__ import annotations

from pydantic import model_validator

from pipeline_lib.config.data import DedupConfig, IngestConfig, ScoreConfig, SelectConfig, SplitConfig, SuitesConfig
from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import (
    CalibrateConfig,
    FillGapsConfig,
    GateConfig,
    ModelConfig,
    PackConfig,
    PlanConfig,
    ReportConfig,
    TokenizerConfig,
    TrainConfig,
    TuneConfig,
    ValidationConfig,
)
from pipeline_lib.config.presets import PresetConfig
from pipeline_lib.config.profiles import all_profiles, check_profile
from pipeline_lib.config.resources import ExecutionConfig, KeepConfig, MemoryConfig, ResourcesConfig, TrackingConfig
from pipeline_lib.errors import ConfigError


class PipelineConfig(Section):
    """A pipeline. Every section has defaults; the defaults are the quickstart's data and model with a 12-hour window."""

    name: str = setting("pipeline", "Name of the pipeline", pattern=r"^[A-Za-z0-9_.-]{1,60}$", identity=False)
    goal: str = setting("", "What this run is for, in words; found again by recall", identity=False, max_length=500)
    preset: str = setting(
        "", "Settings to begin with, by name (`millrace presets`); what is written here goes before them, so in a form, where "
        "everything is filled in, it changes nothing", identity=False, max_length=100,
    )  # fmt: skip
    presets: dict[str, PresetConfig] = setting(dict, "Presets of your own, by name", identity=False)
    seed: int = setting(0, "Seed of everything random", ge=0, lt=2**31)
    resources: ResourcesConfig = setting(ResourcesConfig, "Limits and prices")
    suites: SuitesConfig = setting(SuitesConfig, "Validation items")
    ingest: IngestConfig = setting(IngestConfig, "Sources")
    score: ScoreConfig = setting(ScoreConfig, "Signals and rules")
    dedup: DedupConfig = setting(DedupConfig, "Duplicates")
    split: SplitConfig = setting(SplitConfig, "Train, dev, test")
    select: SelectConfig = setting(SelectConfig, "Choice of documents")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "Tokenizer")
    pack: PackConfig = setting(PackConfig, "Packed-sequence cache")
    fill_gaps: FillGapsConfig = setting(FillGapsConfig, "Healing of the cache")
    model: ModelConfig = setting(ModelConfig, "Model")
    calibrate: CalibrateConfig = setting(CalibrateConfig, "Speed of this machine")
    tune: TuneConfig = setting(TuneConfig, "Hyperparameter search")
    plan: PlanConfig = setting(PlanConfig, "Fit into the window")
    train: TrainConfig = setting(TrainConfig, "Training")
    validation: ValidationConfig = setting(ValidationConfig, "Scores")
    gate: GateConfig = setting(GateConfig, "Promotion")
    report: ReportConfig = setting(ReportConfig, "Report")
    execution: ExecutionConfig = setting(ExecutionConfig, "Workers and extensions")
    tracking: TrackingConfig = setting(TrackingConfig, "MLflow")
    keep: KeepConfig = setting(KeepConfig, "Garbage collection")
    memory: MemoryConfig = setting(MemoryConfig, "Memory of past runs")

    @model_validator(mode="after")
    def _profile_exists(self) -> PipelineConfig:
        try:
            check_profile(self.plan.profile, all_profiles(self.calibrate.profiles))
        except ConfigError as error:
            raise ValueError(f"plan.profile: {error.what}; {error.fix}") from None
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> PipelineConfig:
        if self.train.schedule == "cosine" and not self.train.max_steps:
            raise ValueError(
                "train.schedule = cosine needs a known end, but the window decides when training ends; "
                "use wsd or linear, or set train.max_steps"
            )
        if self.pack.range_tokens < self.pack.sequence_length:
            raise ValueError(
                f"pack.range_tokens = {self.pack.range_tokens} is shorter than one sequence ({self.pack.sequence_length})"
            )
        if self.train.batch_tokens < self.pack.sequence_length:
            raise ValueError(
                f"train.batch_tokens = {self.train.batch_tokens} is less than one sequence (pack.sequence_length = "
                f"{self.pack.sequence_length}); {self.pack.sequence_length * 8} would be 8 sequences a step"
            )
        return self
