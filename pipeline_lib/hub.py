"""Models and tokenizers of the Hugging Face hub: one commit of them, plain data only, in that library's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.errors import ConfigError

HUB = "hf://"
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def fetch(source: str, kind: str, patterns: Sequence[str], *, where: str) -> Path:
    """The folder of a snapshot; what is in the cache is not asked for again.

    Args:
        source: `hf://organisation/name@commit`, all 40 digits.
        kind: what it is, for messages.
        patterns: of the files that are fetched; code and pickles never are.
        where: the setting that names the source.

    Raises:
        ConfigError: the name has no commit (a branch would be another one tomorrow), or the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    if not (pinned := _PINNED.fullmatch(source.removeprefix(HUB))):
        raise ConfigError(
            f"{source} names no commit of a {kind}",
            where=where,
            fix=f"{HUB}organisation/name@ and the 40 digits of a commit: the {kind}'s page shows them under Files, History",
        )
    try:
        return Path(snapshot_download(pinned[1], revision=pinned[2], allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # the library's errors are of both kinds
        raise ConfigError(
            f"the hub gives no {kind} {pinned[1]!r} at {pinned[2]} ({type(error).__name__})",
            where=where,
            fix="look at the name, the commit and the network; or fetch it elsewhere and name its folder",
        ) from error
