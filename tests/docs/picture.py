"""The README's picture, drawn from the table of stages: one box a stage, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from pipeline_lib.stages import STAGES

# One line a stage: what it makes, in the words of a reader who sees the name for the first time.
WORDS: Mapping[str, str] = {
    "suites": "validation items",
    "ingest": "text, cleaned, with origin",
    "score": "quality rules",
    "dedup": "near-duplicates",
    "split": "train, dev, test",
    "select": "what is worth its tokens",
    "pack": "tokenizer, sequences",
    "fill_gaps": "finds and mends damage",
    "calibrate": "this machine's speed",
    "tune": "short trials",
    "plan": "steps that fit the window",
    "train": "checkpoints, exact resume",
    "validate": "scores with intervals",
    "report": "gate, registry, one page",
}
# Where each stage stands: rows are data, training, decision; a stage that is missing here fails the making of the picture.
ROWS = (
    ("suites", "ingest", "score", "dedup", "split"),
    ("select", "pack", "fill_gaps", "calibrate", "tune"),
    ("plan", "train", "validate", "report"),
)
WIDTH, HEIGHT, GAP, RISE, MARGIN = 172, 58, 20, 44, 14

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #566273; text-anchor: middle; }
text.name { font-weight: 600; font-size: 15px; fill: #1c2430; }
rect { fill: #f4f6f9; stroke: #b9c3cf; } rect.recorded { stroke-dasharray: 5 3; } rect.report { fill: #e3f1ea; stroke: #2f9e6e; }
path { fill: none; stroke: #3b82c4; stroke-width: 1.4; marker-end: url(#tip); }
#tip path { fill: #3b82c4; stroke: none; marker-end: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #a5b0be; } text.name { fill: #e6eaf0; }
  rect { fill: #1d232c; stroke: #4a5868; } rect.report { fill: #17332a; stroke: #6fd3a3; }
}
"""


def _place(name: str) -> tuple[int, int]:
    """Upper left corner of a stage's box. Rows run to and fro, so that what follows is always beside or below."""
    for row, names in enumerate(ROWS):
        if name in names:
            column = names.index(name)
            column = column if row % 2 == 0 else len(ROWS[0]) - 1 - column
            return MARGIN + column * (WIDTH + GAP), MARGIN + row * (HEIGHT + RISE)
    raise KeyError(f"the picture has no place for stage {name}: add it to ROWS and WORDS")


def _arrow(start: str, end: str) -> str:
    (x1, y1), (x2, y2) = _place(start), _place(end)
    if y1 == y2:
        right = x2 > x1
        return f"M{x1 + (WIDTH if right else 0)} {y1 + HEIGHT / 2} H{x2 + (-2 if right else WIDTH + 2)}"
    return f"M{x1 + WIDTH / 2} {y1 + HEIGHT} V{y2 - 2}"


def picture() -> str:
    """The SVG, readable on light and dark pages. What the stages read of each other is in its description."""
    order = [stage.name for stage in STAGES] + ["report"]
    recorded = {stage.name for stage in STAGES if stage.kind == "recorded"}
    if differ := {name for row in ROWS for name in row} ^ set(order):
        raise KeyError(f"picture and table of stages disagree about {', '.join(sorted(differ))}")
    width = 2 * MARGIN + len(ROWS[0]) * (WIDTH + GAP) - GAP
    height = 2 * MARGIN + len(ROWS) * (HEIGHT + RISE) - RISE
    reads = "; ".join(f"{stage.name} reads {', '.join(stage.reads)}" for stage in STAGES if stage.reads)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title what">',
        f'<title id="title">{escape(" → ".join(order))}</title>',
        f'<desc id="what">{escape(reads)}. Dashed: stages that look at the clock and keep what they saw.</desc>',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 6 3 0 6z"/></marker></defs>',
    ]
    parts += [f'<path d="{_arrow(a, b)}"/>' for a, b in pairwise(order)]
    for name in order:
        x, y = _place(name)
        kind = "recorded" if name in recorded else "report" if name == "report" else "pure"
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>')
        parts.append(f'<text class="name" x="{x + WIDTH // 2}" y="{y + 25}">{escape(name)}</text>')
        parts.append(f'<text x="{x + WIDTH // 2}" y="{y + 44}">{escape(WORDS[name])}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write(path: Path) -> None:
    """Write the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture(), "utf-8")
