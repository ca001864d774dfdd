"""A plain-Python reference of the signals, and real score runs on small texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.quality.signals import signal_table
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

STOPS = ("the", "be", "to", "of", "and", "that", "have", "with")
SPACE = " \t\n\x0b\x0c\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
BULLETS, CLOSING, QUOTES = "-*•‣●·–", ".!?…。！？", "\"'”’"


def is_letter(char: str) -> bool:
    code = ord(char)
    blocks = ((0x2000, 0x206F), (0x20A0, 0x20CF), (0x2190, 0x2BFF), (0x3000, 0x303F), (0xFF00, 0xFF20), (0x1F000, 0x1FAFF))
    if code < 0xC0:
        return (char.isascii() and char.isalpha()) or char in "ªµº"
    return char not in "×÷" and not any(first <= code <= last for first, last in blocks)


def words_of(text: str) -> list[str]:
    return re.findall(f"[^{re.escape(SPACE)}]+", text)


def ngram_shares(words: list[str], characters: int) -> dict[str, float]:
    shares = {}
    for n in range(2, 5):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(counts.values(), default=1)
        length = max((len(" ".join(gram)) for gram, times in counts.items() if times == most), default=0)
        shares[f"top_{n}gram_char_share"] = min(most * length / characters, 1.0) if most > 1 else 0.0
    for n in range(5, 11):
        seen, at, repeated = set(), 0, 0
        while at + n <= len(words):
            gram = tuple(words[at : at + n])
            if gram in seen:
                repeated += sum(map(len, gram))
                at += n
            else:
                seen.add(gram)
                at += 1
        shares[f"duplicate_{n}gram_char_share"] = repeated / characters
    return shares


def again(values: Sequence[Any]) -> list[bool]:
    return [value in values[:i] for i, value in enumerate(values)]


def ends_code(line: str) -> bool:
    return re.search(r"[;{}\[(\\=]$|\(\)$|\):$", line) is not None


def reference(text: str) -> dict[str, float]:
    """All signals but compression_ratio, emails, ip_addresses, est_tokens and quality."""
    words = words_of(text)
    found: dict[str, float] = {"bytes": len(text.encode()), "characters": len(text), "words": len(words)}
    lines, paragraphs, block = [], [], []  # type: ignore[var-annotated]
    for line in [*text.split("\n"), ""]:
        if words_of(line):
            lines.append(line.strip(SPACE))
            block.append(line)
        elif block:
            paragraphs.append(block)
            block = []
    found |= {"lines": len(lines), "paragraphs": len(paragraphs)}
    if not words:
        return found
    visible = "".join(words)
    tokens = [tuple(words_of(line)) for line in lines]
    blocks = [tuple(tuple(words_of(line)) for line in block) for block in paragraphs]
    sizes = [sum(len(line.strip(SPACE)) for line in block) for block in paragraphs]
    ends = [w[-2:] for w in words]
    plain = {"".join(c.lower() if c.isascii() else c for c in w if is_letter(c) or c in "0123456789") for w in words}
    dots = [re.sub(r"(?<!\.)\.\.\.+", "…", line) for line in text.split("\n")]
    letters = sum(map(is_letter, visible))
    digits = sum(c in "0123456789" for c in visible)
    return found | ngram_shares(words, len(text)) | {
        "sentences": sum(e[-1] in CLOSING or (len(e) == 2 and e[1] in QUOTES and e[0] in CLOSING) for e in ends),
        "mean_word_length": len(visible) / len(words),
        "mean_line_length": sum(map(len, lines)) / len(lines),
        "max_line_length": max(map(len, lines)),
        "hash_per_word": text.count("#") / len(words),
        "ellipsis_per_word": sum(line.count("…") for line in dots) / len(words),
        "bullet_line_share": sum(line[0] in BULLETS for line in lines) / len(lines),
        "ellipsis_line_share": sum(line.endswith(("...", "…")) for line in lines) / len(lines),
        "terminal_line_share": sum(line[-1] in CLOSING + QUOTES for line in lines) / len(lines),
        "short_line_share": sum(len(line) <= 30 for line in lines) / len(lines),
        "newlines_per_word": text.count("\n") / len(words),
        "alpha_word_share": sum(any(map(is_letter, w)) for w in words) / len(words),
        "stop_words": sum(stop in plain for stop in STOPS),
        "letter_share": letters / len(visible),
        "digit_share": digits / len(visible),
        "upper_share": sum(c.isascii() and c.isupper() for c in visible) / letters if letters else 0,
        "symbol_share": (len(visible) - letters - digits) / len(visible),
        "code_line_share": sum(ends_code(re.sub(f"[{SPACE}]", "", line)) for line in lines) / len(lines),
        "braces": text.count("{") + text.count("}"),
        "duplicate_line_share": sum(again(tokens)) / len(lines),
        "duplicate_line_char_share": sum(len(x) for x, twice in zip(lines, again(tokens), strict=True) if twice) / len(text),
        "duplicate_paragraph_share": sum(again(blocks)) / len(blocks),
        "duplicate_paragraph_char_share": sum(n for n, twice in zip(sizes, again(blocks), strict=True) if twice) / len(text),
        "lorem_ipsum": len(re.findall("(?i)lorem ipsum", text, re.ASCII)),
    }  # fmt: skip


def signals(*texts: str) -> pa.Table:
    ids = pa.array([i.to_bytes(16, "big") for i in range(len(texts))], pa.binary(16))
    return signal_table(ids, pa.array(texts, pa.large_string()))


def signal(text: str, name: str) -> Any:
    return signals(text).column(name)[0].as_py()


def config(path: Path, *, extensions: list[str] | None = None, **score: Any) -> PipelineConfig:
    source = {"name": "toy", "kind": "files", "path": str(path), "max_mb": 1000, "id_column": "id"}
    return PipelineConfig.model_validate(
        {"ingest": {"sources": [source]}, "score": score, "execution": {"extensions": extensions or []}}
    )


def run(home: Path, settings: PipelineConfig, workers: int = 1) -> Artifact:
    workspace = Workspace.open(home)
    services = Services(mapper=thread_mapper(workers))
    documents = execute(workspace, BY_NAME["ingest"], settings, {}, services=services)
    made = execute(workspace, BY_NAME["score"], settings, {"ingest": documents}, services=services)
    return workspace.store.artifact(made.key)


def table(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    return list(read_tables(artifact.files(name)).to_pylist())
