"""Sections of the data stages: suites, ingest, score, dedup, split, select."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipeline_lib.config.fields import Section, setting


class SourceConfig(Section):
    """Where documents come from."""

    name: str = setting("machine", "Name of the source, as it appears in tables and reports", pattern=r"^[A-Za-z0-9_.-]{1,60}$")
    kind: Literal["machine", "files", "module", "dataset"] = setting(
        "machine",
        "machine: the standard library and the packages of this environment (no download); files: a folder, file or glob; "
        "module: a function registered by an extension under this source's name; dataset: a local folder that the library "
        "`datasets` saved or can load (split train)",
    )
    path: str = setting("", "Path, glob or fsspec URL (kind files), folder (kind dataset)", identity=False, path=())
    domain: str = setting("", "Domain of every document of this source; empty: the source says it per document", max_length=40)
    licence: str = setting("", "SPDX identifier of every document; empty: per document, else unknown")
    text_column: str = setting("text", "Column that holds the text (JSONL, CSV, Parquet)")
    id_column: str = setting("", "Column that holds a stable id; empty: the position in the file")
    date_column: str = setting("", "Column that holds the creation date")
    max_mb: float = setting(20.0, "Read at most this much text", unit="MB", gt=0, why="the quickstart finishes in minutes")
    priority: int = setting(0, "Among duplicates, the source with the higher priority survives")

    @model_validator(mode="after")
    def _path_where_needed(self) -> SourceConfig:
        if self.kind in {"files", "dataset"} and not self.path:
            raise ValueError(f"a source of kind '{self.kind}' needs a path")
        return self


class IngestConfig(Section):
    """Read sources into documents; what cannot be read goes to quarantine."""

    sources: list[SourceConfig] = setting(lambda: [SourceConfig()], "Sources, in order", min_length=1)
    sample: int = setting(0, "Keep only this many documents, spread evenly by hash; 0: all", unit="documents", ge=0)
    max_document_mb: float = setting(10.0, "A longer document goes to quarantine", unit="MB", gt=0)
    allow_licences: list[str] = setting(
        list,
        "SPDX identifiers of the licences whose documents are taken, `*` stands for anything (`CC-BY-*`); empty: all. Of "
        "`A OR B` one is enough. Documents of unknown licence are a matter of `unknown_licence_limit`",
    )
    deny_licences: list[str] = setting(
        list, "SPDX identifiers, in the same form, whose documents are left out even where `allow_licences` names them"
    )
    unknown_licence_limit: float = setting(
        1.0, "Refuse to go on when a larger share of the documents has no known licence", unit="share", ge=0, le=1
    )
    quarantine_limit: float = setting(
        0.05,
        "Refuse to go on when a larger share of records cannot be read",
        unit="share",
        ge=0,
        le=1,
        why="a format change upstream shows as a jump, single broken lines do not",
    )


RuleSetName = Literal["prose", "code", "licence", "none"]


class ScoreConfig(Section):
    """Measure every document, then decide by rules."""

    rules: dict[str, str] = setting(
        lambda: {"code": "code", "licence": "licence", "*": "prose"},
        "Rule set by domain; `*` is any other domain. Built in: prose, code, licence, none; extensions may register more",
    )
    extra_rules: dict[str, str] = setting(
        dict, "Further rules by name: a SQL expression over signals that is true for a document to keep"
    )


class DedupConfig(Section):
    """Find duplicates by MinHash, verify them exactly, keep one of each group."""

    threshold: float = setting(
        0.8,
        "Exact Jaccard similarity of shingles from which two documents are duplicates",
        gt=0,
        le=1,
        why="0.8 is the setting of most published corpora",
    )
    shingle_words: int = setting(5, "Words in a shingle", unit="words", ge=1, le=20)
    bands: int = setting(21, "LSH bands", ge=1, le=128, why="21×6 proposes .998 of pairs at J = .8 where 16×8 proposes .947")
    rows: int = setting(6, "MinHash values in a band", ge=1, le=32)
    bucket_limit: int = setting(
        200,
        "A larger band bucket is cut to star pairs and reported",
        unit="documents",
        ge=2,
        why="a bucket of n documents proposes n²/2 pairs, which are held in memory: 20,000 for 200, half a million for 1,000",
    )
    decontaminate: bool = setting(True, "Drop documents that contain verbatim validation items")
    decontaminate_words: int = setting(
        13,
        "Length of the n-grams that tell contamination",
        unit="words",
        ge=5,
        le=50,
        why="13-grams: GPT-3, appendix C",
    )

    @model_validator(mode="after")
    def _signature_holds_the_bands(self) -> DedupConfig:
        if self.bands * self.rows > 128:
            raise ValueError(f"bands × rows = {self.bands * self.rows} is more than the 128 MinHash values; try 21 × 6 or 16 × 8")
        return self


class SplitConfig(Section):
    """Assign duplicate clusters to train, dev and test by hash."""

    dev_share: float = setting(0.01, "Share of clusters for dev", unit="share", gt=0, lt=0.5)
    test_share: float = setting(0.01, "Share of clusters for test", unit="share", gt=0, lt=0.5)
    floor_per_domain: int = setting(20, "At least this many clusters a domain on dev and on test", unit="clusters", ge=0)


class SelectConfig(Section):
    """Choose documents within a budget by quality, diversity, balance and recency."""

    target_tokens: int = setting(0, "Budget in estimated tokens; 0: everything that passed", unit="tokens", ge=0)
    quality_weight: float = setting(0.6, "Weight of quality against diversity", ge=0, le=1)
    recency_half_life_days: float = setting(0.0, "A document this old counts half; 0: age does not matter", unit="days", ge=0)
    domain_balance: Literal["none", "temperature", "unimax"] = setting("temperature", "How domains share the budget")
    temperature: float = setting(0.7, "Exponent on domain sizes (1: as they are, 0: equal shares)", ge=0, le=1)
    max_repeats: int = setting(1, "Largest number of times a document may be seen in one pass", ge=1, le=16)
    parent: str = setting("none", "`previous`: continue the champion's selection (add and tombstone); `none`: choose afresh")
    replay_share: float = setting(
        0.3,
        "With a parent: share of the tokens that are old documents",
        unit="share",
        ge=0,
        lt=1,
        why="keeps the model from forgetting what earlier nights taught",
    )


class SuitesConfig(Section):
    """Build the validation items, before dedup, so that training text can be decontaminated."""

    level: Literal["smoke", "standard"] = setting("smoke", "smoke: at least 1,000 items; standard: at least 10,000")
    names: list[str] = setting(list, "Suites to build; empty: all built-in ones of the level")
    paths: list[str] = setting(
        list, "JSONL files of user items (documented in pipeline_lib/validation/README.md)", identity=False, path=()
    )
