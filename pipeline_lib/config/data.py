"""Sections of the data stages: suites, ingest, score, dedup, split, select."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from pipeline_lib.config.fields import Section, setting


class SourceConfig(Section):
    """Where documents come from."""

    name: str = setting("machine", "Name of the source, as it appears in tables and reports", pattern=r"^[A-Za-z0-9_.-]{1,60}$")
    kind: Literal["machine", "files", "module", "dataset"] = setting(
        "machine",
        "machine: the standard library and the packages of this environment (no download); files: a folder, file or glob; "
        "module: a function registered by an extension under this source's name; dataset: a data set of the library `datasets`, "
        "in a local folder or on the Hugging Face hub",
    )
    records: Literal["text", "instruct"] = setting(
        "text",
        "text: each record is a text; instruct: messages (`messages`, `conversations`) or a prompt (`prompt`, `instruction`, "
        "`question`, with `input` and `system` where there are) and its response (`response`, `output`, `answer`, `completion`)",
    )
    path: str = setting(
        "", "Path, glob or fsspec URL (kind files); folder, or hf://datasets/owner/name (kind dataset)", identity=False, path=()
    )
    revision: str = setting(
        "",
        "Commit of a data set on the hub (40 hexadecimal digits)",
        pattern=r"^([0-9a-f]{40})?$",
        why="a name may change its content",
    )
    split: str = setting("train", "Split of a data set", pattern=r"^[A-Za-z0-9_.-]{1,60}$")
    subset: str = setting("", "Configuration of a data set that has several", pattern=r"^[A-Za-z0-9_.-]{0,60}$")
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "html", "warc"] = setting(
        "auto", "How files are read; auto: by the name, else by the content"
    )
    split_text: Literal["no", "blank_lines", "size"] = setting(
        "no", "Text files: a document each (no), a document a paragraph (blank_lines), or pieces of `piece_kb` (size)"
    )
    piece_kb: float = setting(8.0, "Largest piece with `split_text: size`", unit="kB", ge=0.1, le=10_000)
    domain: str = setting("", "Domain of every document of this source; empty: the source says it per document", max_length=40)
    licence: str = setting("", "SPDX identifier of every document; empty: per document, else unknown")
    attribution: str = setting("", "How the source asks to be credited; stands in the model card", identity=False, max_length=500)
    text_column: str = setting("text", "Column that holds the text (JSONL, CSV, Parquet)")
    id_column: str = setting("", "Column that holds a stable id; empty: the position in the file")
    date_column: str = setting("", "Column that holds the creation date")
    date_pattern: str = setting(
        "",
        "Date in the file names, where records have none: `%Y` year, `%m` month, `%d` day, as in `news-%Y%m%d`",
        max_length=100,
    )
    url_column: str = setting("", "Column that holds the address; empty: `url`")
    max_mb: float = setting(
        0.0,
        "Read at most this much text; 0: 20 MB of kind machine, everything of the others",
        unit="MB",
        ge=0,
        why="the quickstart finishes in minutes, and nobody's own text is cut unasked",
    )
    priority: int = setting(0, "Among duplicates, the source with the higher priority survives")

    @property
    def limit_mb(self) -> float:
        """`max_mb`, with what 0 means."""
        return self.max_mb or (20.0 if self.kind == "machine" else math.inf)

    @model_validator(mode="after")
    def _path_where_needed(self) -> SourceConfig:
        if self.kind in {"files", "dataset"} and not self.path:
            raise ValueError(f"a source of kind '{self.kind}' needs a path")
        if self.kind == "machine" and self.path:
            raise ValueError("a source of kind 'machine' reads no path; `kind: files` does")
        if self.kind == "dataset" and "://" in self.path and not self.revision:
            raise ValueError("a data set on the hub needs `revision`: the commit it is read at")
        parts = [self.date_pattern.count(part) for part in ("%Y", "%m", "%d")]
        if self.date_pattern and (parts[0] != 1 or max(parts) > 1):
            raise ValueError("date_pattern needs %Y once, %m and %d at most once, as in news-%Y%m%d")
        return self


class IngestConfig(Section):
    """Read sources into documents; what cannot be read goes to quarantine."""

    sources: list[SourceConfig] = setting(lambda: [SourceConfig()], "Sources, in order", min_length=1)
    sample: int = setting(0, "Keep only this many documents, spread evenly by hash; 0: all", unit="documents", ge=0)
    max_document_mb: float = setting(10.0, "A longer document goes to quarantine", unit="MB", gt=0)
    max_file_gb: float = setting(
        100.0,
        "Read at most this much of a file, downloaded or decompressed; what is beyond goes to quarantine as one row",
        unit="GB",
        gt=0,
    )
    max_expansion: float = setting(
        200.0,
        "Read a compressed file up to this many times its own size (64 MiB are always read)",
        gt=1,
        why="text is compressed 3 to 30 times; a decompression bomb a thousand times and more",
    )
    mojibake: bool = setting(False, "Repair text that was decoded with a wrong encoding (extra `web`)")
    redact: list[Literal["email", "ip", "phone", "key"]] = setting(
        list, "Personal data and secrets that become `[email]` and so on in every text; what is left out stays as it is"
    )
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


RuleSetName = Literal["prose", "gopher", "c4", "fineweb", "code", "instruct", "licence", "none"]


class ScoreConfig(Section):
    """Measure every document, then decide by rules."""

    rules: dict[str, str] = setting(
        lambda: {"code": "code", "licence": "licence", "*": "prose"},
        "Rule sets by domain; `*` is any other domain, `gopher+fineweb` is both. Built in: prose, gopher, c4, fineweb, code, "
        "instruct, licence, none; extensions may register more",
    )
    instruct_rules: str = setting("instruct", "Rule sets of instruction records, whatever their domain")
    extra_rules: dict[str, str] = setting(
        dict, "Further rules by name: a SQL expression over signals that is true for a document to keep"
    )
    ngram_model: str = setting(
        "", "Model of the n-gram signals and the classifier, written by `millrace fit-ngrams`; empty: the one that ships",
        identity=False, path=(),
    )  # fmt: skip


class DedupConfig(Section):
    """Find duplicates by MinHash, verify them exactly, keep one of each group."""

    threshold: float = setting(
        0.8,
        "Exact Jaccard similarity of shingles from which two documents are duplicates",
        gt=0,
        le=1,
        why="0.8 is the setting of most published corpora",
    )
    thresholds: list[float] = setting(
        list, "Further thresholds to count duplicates at; what they would remove is shown, nothing is removed by them"
    )
    containment: float = setting(
        0.0,
        "Containment of the smaller in the larger shingle set from which two documents are duplicates, too; "
        "0: Jaccard alone decides",
        ge=0,
        le=1,
        why="bands propose pairs by Jaccard, so a short part of a long document is not looked at",
    )
    shingle: Literal["words", "characters"] = setting(
        "words",
        "What a shingle is made of",
        why="words are faster; characters bear noise inside words, as of optical recognition",
    )
    shingle_words: int = setting(5, "Words in a shingle", unit="words", ge=1, le=20)
    shingle_characters: int = setting(15, "Characters in a shingle, with `shingle: characters`", unit="characters", ge=2, le=64)
    bands: int = setting(21, "LSH bands", ge=1, le=128, why="21×6 proposes .998 of pairs at J = .8 where 16×8 proposes .947")
    rows: int = setting(6, "MinHash values in a band", ge=1, le=32)
    bucket_limit: int = setting(
        1000,
        "All pairs of a band bucket up to this size are looked at; a larger one is split by further bands and reported",
        unit="documents",
        ge=2,
        why="licences come in families of several hundred, and at 200 a twelfth of their pairs is missed; a bucket of n "
        "documents "
        "gives n²/2 pairs, so the parts of a larger one may have a fifth of this size",
    )
    survivor: list[Literal["priority", "quality", "length", "date"]] = setting(
        lambda: ["priority", "quality", "length", "date"],
        "Which of several duplicates stays: the order of what is compared; the id decides last",
        why="a document without validation items, then one that passed the rules, then one of an earlier night always comes "
        "first",
    )
    source_quota: float = setting(
        0.0,
        "At least this share of each source's documents stays, duplicates or not; 0: no quota",
        unit="share",
        ge=0,
        le=1,
        why="one public corpus lost all but 2 of a source's 859,092 documents without anybody noticing",
    )
    cluster_alarm: int = setting(1000, "A larger cluster is reported as an event", unit="documents", ge=2)
    parent: str = setting(
        "none", "`previous`: survivors of the champion's night stay survivors; `none`: the order of survivors alone decides"
    )
    boilerplate: Literal["off", "report", "trim"] = setting(
        "off", "Lines that many documents share: not looked for, reported, or cut out of all documents but one"
    )
    boilerplate_documents: int = setting(100, "A line in at least this many documents is boilerplate", unit="documents", ge=2)
    boilerplate_bytes: int = setting(40, "Shorter lines are never boilerplate", unit="bytes", ge=1)
    semantic: str = setting(
        "none",
        "Folder of an embedding model (safetensors): documents that mean the same as a better one are dropped, too; `none`: off",
        identity=False,
        path=("none",),
        why="minutes for every thousand documents on a processor, and texts that only treat the same subject may be called equal",
    )
    semantic_threshold: float = setting(
        0.95, "Cosine similarity of embeddings from which two documents mean the same", gt=0, le=1
    )
    decontaminate: bool = setting(True, "Look for verbatim validation items in documents, and take out what is found")
    contaminated: Literal["drop", "cut"] = setting(
        "drop",
        "What is taken out: the whole document, or the words that are in the item (a document that would lose more than half, "
        "and a "
        "conversation, is dropped all the same)",
    )
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
        if len(set(self.survivor)) != len(self.survivor):
            raise ValueError(f"survivor names something twice: {', '.join(self.survivor)}")
        if wrong := [value for value in self.thresholds if not 0 < value <= 1]:
            raise ValueError(f"thresholds holds {wrong[0]:g}; a Jaccard similarity lies between 0 and 1")
        return self


class SplitConfig(Section):
    """Assign duplicate clusters to train, dev and test by hash."""

    dev_share: float = setting(0.01, "Share of clusters for dev", unit="share", gt=0, lt=0.5)
    test_share: float = setting(0.01, "Share of clusters for test", unit="share", gt=0, lt=0.5)
    floor_per_domain: int = setting(20, "At least this many clusters a domain on dev and on test", unit="clusters", ge=0)
    parent: str = setting(
        "none", "`previous`: every document of the champion's split keeps its side; `none`: sides are drawn afresh"
    )


class SelectConfig(Section):
    """Choose documents within a budget by quality, diversity, balance and recency."""

    target_tokens: int = setting(0, "Budget in estimated tokens; 0: everything that passed", unit="tokens", ge=0)
    target_documents: int = setting(0, "Budget in documents, instead of tokens; 0: none", unit="documents", ge=0)
    min_quality: float = setting(0.0, "A document of lower quality is not chosen", ge=0, le=1)
    diversity_weight: float = setting(
        0.4,
        "Weight of diversity against quality: 0 takes the best documents, 1 those that differ most from what is there",
        ge=0,
        le=1,
        why="chosen together, quality and diversity beat one after the other (SampleMix, 2025); quality leads",
    )
    recency_half_life_days: float = setting(0.0, "A document this old counts half; 0: age does not matter", unit="days", ge=0)
    domain_balance: Literal["none", "temperature", "unimax", "weights"] = setting(
        "temperature",
        "How domains share the budget: none: by size; temperature: by size to a power; unimax: equally, as far as `epoch_cap` "
        "allows; weights: as `domain_weights` says",
    )
    temperature: float = setting(0.7, "Exponent on domain sizes (1: as they are, 0: equal shares)", ge=0, le=1)
    domain_weights: dict[str, float] = setting(
        dict, "With `domain_balance: weights`: relative weight by domain; `*` is any other domain, 0 without it"
    )
    epoch_cap: float = setting(
        4.0,
        "No domain gives more than this many times its size, whatever its share",
        unit="passes",
        gt=0,
        le=16,
        why="up to four passes over the same text are nearly as good as new text (Muennighoff et al. 2023)",
    )
    max_repeats: int = setting(1, "Largest number of times a document may be seen in one pass", ge=1, le=16)
    source_floor: int = setting(
        0, "At least this many documents of each source, as far as it has them and the budget reaches", unit="documents", ge=0
    )
    kind_shares: dict[str, float] = setting(
        dict, "Share of the budget by kind of record (text, instruct); a kind that is not named shares what is left by size"
    )
    refill: float = setting(
        0.05,
        "Each cell of domain × length × quality × date keeps at least this share of its part of the budget; what it lacks is "
        "filled from documents that were not chosen. 0: cells are only shown",
        unit="share",
        ge=0,
        le=1,
        why="nothing dies out, at the price of at most a twentieth of the budget",
    )
    toward: str = setting(
        "none",
        "Prefer what resembles a sample of text (importance resampling, DSIR): a JSONL file (`text`) or a text file (a "
        "paragraph a "
        "sample); `world`: statements from the reference tables, without the entities that validation asks for; `none`",
        identity=False,
        path=("none", "world"),
    )
    toward_candidates: float = setting(
        2.0,
        "With `toward`: draw this many times the budget; quality, diversity and balance choose among these",
        ge=1,
        le=100,
    )
    parent: str = setting("none", "`previous`: continue the champion's selection (add and tombstone); `none`: choose afresh")
    replay_share: float = setting(
        0.3,
        "With a parent: share of the tokens that are old documents",
        unit="share",
        ge=0,
        lt=1,
        why="keeps the model from forgetting what earlier nights taught",
    )
    replay_most: float = setting(
        0.0,
        "With `parent: previous`: the share rises from `replay_share` up to this with what the champion forgot at its promotion "
        "(share of the tasks surely lost; a quarter of them: all of it); not above `replay_share`: it does not",
        unit="share",
        ge=0,
        lt=1,
        identity=False,
    )

    @model_validator(mode="after")
    def _shares_of_something(self) -> SelectConfig:
        if self.target_tokens and self.target_documents:
            raise ValueError("target_tokens and target_documents are both set; a budget is counted in one of them")
        weights = [*self.domain_weights.values(), *self.kind_shares.values()]
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ValueError("domain_weights and kind_shares hold numbers from 0")
        if self.domain_balance == "weights" and not any(self.domain_weights.values()):
            raise ValueError("domain_balance: weights needs domain_weights with a weight above 0")
        if self.domain_weights and self.domain_balance != "weights":
            raise ValueError(f"domain_weights count with domain_balance: weights, not with {self.domain_balance}")
        if unknown := [kind for kind in self.kind_shares if kind not in {"text", "instruct"}]:
            raise ValueError(f"kind_shares names {unknown[0]!r}; kinds of records are text and instruct")
        if sum(self.kind_shares.values()) > 1 + 1e-9:
            raise ValueError(f"kind_shares add up to {sum(self.kind_shares.values()):g}, more than 1")
        if not (self.target_tokens or self.target_documents):
            for name, wanted in (("kind_shares", self.kind_shares), ("toward", self.toward != "none")):
                if wanted:
                    raise ValueError(f"{name} needs a budget: set target_tokens or target_documents")
        return self


class SuitesConfig(Section):
    """Build the validation items, before dedup, so that training text can be decontaminated."""

    level: Literal["smoke", "standard"] = setting("smoke", "smoke: at least 1,000 items; standard: at least 10,000")
    names: list[str] = setting(list, "Suites to build; empty: all built-in ones of the level")
    paths: list[str] = setting(
        list, "JSONL files of user items (documented in pipeline_lib/validation/README.md)", identity=False, path=()
    )
    earth_tables: list[str] = setting(
        list, "CSV or TSV files with a row an entity and a column a property, asked in the suite `earth`", identity=False, path=()
    )
