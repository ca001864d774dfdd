"""A plain-Python reference of the rule signals, and real score runs on small texts."""

# ruff: noqa: PLR0911, SIM905

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.quality.characters import _TERMINALS as TERMINALS
from pipeline_lib.quality.characters import special_words
from pipeline_lib.quality.signals import signal_table
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import TURNS
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

PROSE = (
    "The old mill stands beside a quiet river, and its wheel has turned there for three hundred years.\n"
    "Farmers from nearby valleys bring grain that must be ground before winter snow closes mountain roads.\n"
    "A young miller learned to listen: stones sing one way with barley, quite another way with rye.\n"
    "Visitors sometimes ask why nobody replaced all this timber by steel and electric motors long ago.\n"
    "She answers that bread would have lost something no engineer could ever measure on any dial.\n"
)
PLAIN = (  # words that any English text has, in their order
    "It is one of the first things that the user of a module has to know: the value of the argument is used as the name of "
    "the file, and if the file is not there, an error is raised. When the function is called with a list of names, each of "
    "the names in the list is read in the same order as it is given. The result is the same as that of the other method, "
    "but it can be used for more than one of the values at the same time. If there is no such name in the list, the default"
    " value is returned to the user, as it would be if the method had been called with no arguments at all. This is what "
    "should be used by most of the programs that have to read a number of files, because it does not need to know how many "
    "of them there are in the directory."
)
STOPS = ("the", "be", "to", "of", "and", "that", "have", "with")
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
POINTS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
MARKS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz kmh mph hPa Pa mbar mb MB kb KB gb "
    "GB tb TB T G M K"
).split()
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SPECIAL = special_words()


def kind(char: str) -> str:
    return unicodedata.category(char)


def is_icon(char: str) -> bool:
    return kind(char) == "So"


def is_currency(char: str) -> bool:
    return char in "$£€¥฿₽﷼₴" or 0x20A0 <= ord(char) < 0x20C0


def is_lower(char: str) -> bool:
    """Or of a script without cases."""
    return (kind(char)[0] == "L" and kind(char) not in {"Lu", "Lt"}) or (kind(char) in {"Mn", "Mc"} and ord(char) >= 0x900)


def is_upper(char: str) -> bool:
    return (kind(char)[0] == "L" and kind(char) != "Ll") or (kind(char) in {"Mn", "Mc"} and ord(char) >= 0x900)


def is_alpha(char: str) -> bool:
    return is_lower(char) or is_upper(char)


def is_suffix(char: str) -> bool:
    return char in QUOTES or char in POINTS or char in "—–" or is_icon(char)


def is_mark(char: str) -> bool:
    return char in MARKS or char in TERMINALS or (kind(char) == "Cc" and not char.isspace())


def digit(char: str) -> bool:
    return char in "0123456789"


def prefix(piece: str) -> int:
    first = piece[0]
    if is_suffix(first) or first in "§%=" or is_currency(first):
        return 1
    if first == "+" and not digit(piece[1:2] or "x"):
        return 1
    dots = len(piece) - len(piece.lstrip("."))
    return dots if dots > 1 else 0


def suffix(piece: str) -> int:
    if not piece:
        return 0
    if is_suffix(piece[-1]):
        return 1
    before = piece[-2:-1]
    if piece[-1] == ".":
        dots = len(piece) - len(piece.rstrip("."))
        if dots > 1:
            return dots
        if before and (digit(before) or is_lower(before) or before in QUOTES + POINTS + "—–" + "%²-+"):
            return 1
        return int(len(piece) > 2 and is_upper(piece[-2]) and is_upper(piece[-3]))
    if piece[-2:] in {"'s", "'S", "’s", "’S"}:
        return 2
    if before and digit(before) and (piece[-1] in "+%" or is_currency(piece[-1])):
        return 1
    return max((len(unit) for unit in UNITS if piece.endswith(unit) and digit(piece[: -len(unit)][-1:] or "x")), default=0)


def is_host(text: str) -> bool:
    name = r"[A-Za-z0-9\u00a1-\uffff](?:[A-Za-z0-9\u00a1-\uffff_-]{0,62}[A-Za-z0-9\u00a1-\uffff])?"
    found = re.match(rf"(?:{name}\.)+([A-Za-z0-9\u00a1-\uffff_-]{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?$", text, re.ASCII)
    return found is not None and all(map(is_lower, found[1]))


def is_address(piece: str) -> bool:
    scheme = re.match(r"[A-Za-z0-9_+.\u00a1-\uffff-]{2,}://", piece)
    rest = piece[scheme.end() :] if scheme else piece
    starts = [piece, rest, *(piece[i + 1 :] for i in range(len(piece) - len(rest) + 1, len(piece)) if piece[i] == "@")]
    starts += [piece[i + 1 :] for i in range(1, len(piece)) if piece[i] == "@" and not scheme]
    return any(map(is_host, starts))


def infix(piece: str, at: int) -> int:
    char, before, after = piece[at], piece[at - 1 : at] if at else "", piece[at + 1 : at + 2]
    run = len(piece[at:]) - len(piece[at:].lstrip(char))
    if char == "…" or is_icon(char):
        return 1
    if char == "." and run > 1:
        return run
    if char == ".":
        return int(bool(before and after) and (is_lower(before) or before in QUOTES) and (is_upper(after) or after in QUOTES))
    if char in "+-*^" and before and digit(before) and after and (digit(after) or after == "-"):
        return 1
    if char == ",":
        return int(bool(before and after) and is_alpha(before) and is_alpha(after))
    if not before or not (is_alpha(before) or digit(before)):
        return 0
    if char in ":<>=/-–—~" and after and is_alpha(after):
        return 1
    if char in "-—" and run in ((2, 3) if char == "-" else (2,)) and at + run < len(piece) and is_alpha(piece[at + run]):
        return run
    return 0


def split_core(piece: str) -> list[str]:
    if "." in piece and is_address(piece):
        return [piece]
    found, first, at = [], 0, 0
    while at < len(piece):
        size = infix(piece, at)
        if size and at:
            found += [piece[first:at]] if at > first else []
            found.append(piece[at : at + size])
            first = at + size
        at += size or 1
    return found + ([piece[first:]] if first < len(piece) else [])


def split_piece(piece: str) -> list[str]:
    head: list[str] = []
    tail: list[str] = []
    while piece and piece not in SPECIAL:
        front = prefix(piece)
        if front and piece[front:] in SPECIAL:
            head.append(piece[:front])
            piece = piece[front:]
            break
        back = suffix(piece[front:])
        if back and piece[:-back] in SPECIAL:
            tail.insert(0, piece[-back:])
            piece = piece[:-back]
            break
        if not front and not back:
            break
        head += [piece[:front]] if front else []
        tail[:0] = [piece[len(piece) - back :]] if back else []
        piece = piece[front : len(piece) - back]
    if piece in SPECIAL:
        for length in SPECIAL[piece]:
            head.append(piece[:length])
            piece = piece[length:]
        return head + ([piece] if piece else []) + tail
    return head + (split_core(piece) if piece else []) + tail


def words_of(text: str) -> list[str]:
    return [word for piece in text.split() for word in split_piece(piece)]


def sentence_ends(line: str) -> tuple[int, bool]:
    """Ends that a word follows, and whether the line ends in one."""
    ended, inside = False, 0
    for word in words_of(line):
        if len(word) == 1 and word in TERMINALS:
            ended = True
        elif ended and not all(kind(char)[0] == "P" for char in word):
            ended, inside = False, inside + 1
    return inside, ended


def ngram_shares(words: list[str], characters: int) -> dict[str, float]:
    shares = {}
    for n in range(2, 5):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        top, times = Counter(grams).most_common(1)[0] if grams else ((), 0)
        shares[f"top_{n}gram_char_share"] = min(times * len(" ".join(top)) / characters, 1.0)
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


def copies(parts: list[str]) -> tuple[int, int]:
    again = [part for i, part in enumerate(parts) if part in parts[:i]]
    return len(again), sum(map(len, again))


def clean(lines: list[str]) -> dict[str, float]:
    found = dict.fromkeys(("clean_lines", "clean_sentences", "clean_brace_lines", "clean_lorem_ipsum"), 0)
    for line in (line.strip() for line in lines):
        body = re.sub(r"(?:\[[0-9]*\]|(?i:\[edit\]|\[citation needed\]))+$", "", line)
        small = "".join(char.lower() if char.isascii() else char for char in line)
        if len(line.split()) < 3 or max(map(len, line.split())) > 1000 or not body.endswith((".", "?", "!", '"', "'")):
            continue
        if body.endswith("..."):
            continue
        found["clean_lorem_ipsum"] += "lorem ipsum" in small
        if "javascript" in small:
            continue
        found["clean_brace_lines"] += "{" in line
        if not any(policy in small for policy in POLICIES):
            found["clean_lines"] += 1
            found["clean_sentences"] += sentence_ends(line)[0] + 1
    return found


def reference(text: str) -> dict[str, float]:
    """All signals of the rule kernel."""
    words = words_of(text)
    found: dict[str, float] = {"bytes": len(text.encode()), "characters": len(text)}
    lines = [line for line in text.split("\n") if line.strip()]
    if not words:
        return found | {"words_and_marks": 0, "lines": 0, "paragraphs": 0, "quality": 0}
    all_lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    real = [word for word in words if not all(map(is_mark, word))]
    shown = [line.strip() for line in lines]
    ends = [sentence_ends(line) for line in lines]
    visible = [char for char in text if not char.isspace()]
    letters, digits = sum(kind(char)[0] == "L" for char in visible), sum(map(digit, visible))
    segments, blocks = re.split("\n+", text), re.split("\n{2,}", text.strip())
    dots = sum(len(run) // 3 for run in re.findall(r"\.+", text)) + text.count("…")
    return found | ngram_shares(words, len(text)) | clean(lines) | {
        "words": len(real), "words_and_marks": len(words), "lines": len(lines), "paragraphs": len(blocks),
        "sentences": sum(inside + ended for inside, ended in ends),
        "mean_word_length": sum(map(len, real)) / len(real) if real else 0,
        "mean_line_length": sum(map(len, shown)) / len(shown),
        "max_line_length": max(map(len, shown)),
        "hash_per_word": text.count("#") / len(words),
        "ellipsis_per_word": dots / len(words),
        "bullet_line_share": sum(line[0] in "-•" for line in shown) / len(all_lines),
        "ellipsis_line_share": sum(line.endswith(("...", "…")) for line in shown) / len(all_lines),
        "terminal_line_share": sum(line[-1] in TERMINALS for line in lines) / len(lines),
        "short_line_share": sum(len(line) <= 30 for line in lines) / len(lines),
        "newlines_per_word": text.count("\n") / len(words),
        "alpha_word_share": sum(any(kind(char)[0] == "L" for char in word) for word in words) / len(words),
        "stop_words": sum(stop in words for stop in STOPS),
        "letter_share": letters / len(visible), "digit_share": digits / len(visible),
        "upper_share": sum(char.isascii() and char.isupper() for char in visible) / letters if letters else 0,
        "symbol_share": (len(visible) - letters - digits) / len(visible),
        "code_line_share": sum(re.search(r"[;{}\[(\\=]$|\(\)$|\):$", line) is not None for line in shown) / len(lines),
        "braces": text.count("{") + text.count("}"),
        "duplicate_line_share": copies(segments)[0] / len(segments),
        "duplicate_line_char_share": copies(segments)[1] / len(text),
        "duplicate_text_line_char_share": copies(lines)[1] / len(text.replace("\n", "")),
        "duplicate_paragraph_share": copies(blocks)[0] / len(blocks),
        "duplicate_paragraph_char_share": copies(blocks)[1] / len(text),
    }  # fmt: skip


def signals(*texts: str, turns: Any = None) -> pa.Table:
    ids = pa.array([i.to_bytes(16, "big") for i in range(len(texts))], pa.binary(16))
    return signal_table(ids, pa.array(texts, pa.large_string()), pa.array(turns, TURNS) if turns else None)


def signal(text: str, name: str) -> Any:
    return signals(text).column(name)[0].as_py()


def config(path: Path, *, extensions: list[str] | None = None, records: str = "text", **score: Any) -> PipelineConfig:
    source = {"name": "toy", "kind": "files", "path": str(path), "max_mb": 1000, "id_column": "id", "records": records}
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
