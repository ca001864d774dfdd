"""A finding: what the analysis says, the evidence, and the setting to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Numbers = list[tuple[str, float, str]]  # name, value, unit


def sentence(parts: Sequence[str]) -> str:
    """Reasons as one sentence."""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


@dataclass(frozen=True)
class Finding:
    """One sentence of the analysis. `trouble` is an alarm; `advice` is worth a thought."""

    name: str
    level: Literal["trouble", "advice"]
    says: str
    evidence: str
    setting: str  # full names of settings
    change: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)
