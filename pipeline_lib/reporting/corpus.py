"""What the text did to the model: duplicates, leaks into the held-out side, and more of what would help."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pipeline_lib.reporting.evidence import Evidence, percent
from pipeline_lib.reporting.findings import Finding

DUPLICATE_SHARE = 0.4  # of all documents; published web crawls lose 10 to 30 %, a machine's licences and headers a third
LEAK_SHARE, LEAK_DOCUMENTS = 0.05, 3  # of the test documents searched: more than quotations
REFUSED_SHARE = 0.4  # of all documents refused by the rules
PASSES = 4.0  # repeated text is almost as good as new one up to here (Muennighoff et al. 2023, arXiv 2305.16264)
BEHIND = 1.25  # a domain's dev loss ÷ the mean


def duplicates(evidence: Evidence) -> Iterator[Finding]:
    """Much of the corpus was there more than once."""
    documents, dropped = evidence.metric("dedup", "documents"), evidence.metric("dedup", "dropped")
    copies = evidence.metric("dedup", "exact_duplicates") + evidence.metric("dedup", "near_duplicates")
    copies = copies or dropped
    if not documents or copies / documents <= DUPLICATE_SHARE:
        return
    source, (out, of) = max(evidence.repeated.items(), key=lambda item: item[1][0], default=("", (0, 0)))
    where = f" Most in source {source}: {out:,} of {of:,}." if out else ""
    yield Finding(
        "duplicate_heavy", "trouble", "Much of the corpus was there more than once.",
        f"{copies:,.0f} of {documents:,.0f} documents ({percent(copies / documents)}) are duplicates, "
        f"{evidence.metric('dedup', 'near_duplicates'):,.0f} of them only nearly; "
        f"the largest cluster has {evidence.metric('dedup', 'largest_cluster'):,.0f}.{where}",
        "ingest.sources", "Leave out or shrink (max_mb) the source that repeats itself, and add one that does not.",
    )  # fmt: skip


def leaks(evidence: Evidence) -> Iterator[Finding]:
    """The held-out side is in the training text."""
    if evidence.overlap is None:
        return
    found, searched = evidence.overlap
    if found < LEAK_DOCUMENTS or found <= LEAK_SHARE * searched:
        return
    yield Finding(
        "leaking_validation", "trouble", "The held-out text is in the training text: its scores flatter.",
        f"{found:,} of {searched:,} test documents ({percent(found / searched)}) have at least half of their "
        "13-word sequences in the training text.",
        "dedup.threshold, dedup.containment",
        f"A lower threshold than {evidence.config.dedup.threshold:g}, or dedup.containment = 0.5, so that documents that share "
        "so much stay on one side.",
    )  # fmt: skip


def refused(evidence: Evidence) -> Iterator[Finding]:
    """The rules refused a large part."""
    documents, dropped = evidence.metric("score", "documents"), evidence.metric("score", "dropped")
    if documents and dropped / documents > REFUSED_SHARE:
        yield Finding(
            "much_refused", "advice", "The rules refused a large part of the text.",
            f"{dropped:,.0f} of {documents:,.0f} documents ({percent(dropped / documents)}).",
            "ingest.sources, score.rules", "Cleaner sources; `millrace rules` shows what each rule costs.",
        )  # fmt: skip


def more_text(evidence: Evidence) -> Iterator[Finding]:
    """The text was read more often than it gives new things."""
    epochs = evidence.metric("train", "epochs")
    if epochs > PASSES:
        yield Finding(
            "more_text", "advice", "The training text was read too often.",
            f"{epochs:.1f} passes over {evidence.metric('pack', 'tokens'):,.0f} tokens; "
            f"beyond {PASSES:g} they are worth ever less.",
            "ingest.sources",
            f"{epochs / PASSES:.1f} times the text (max_mb, further sources), or train.max_epochs = {PASSES:g}.",
        )  # fmt: skip


def mixture(evidence: Evidence) -> Iterator[Finding]:
    """The domain that is learned worst, and its part of the training text."""
    steps = {row["step"] for row in evidence.parts}
    if not steps:
        return
    tokens: dict[str, int] = defaultdict(int)
    loss: dict[str, float] = defaultdict(float)
    for row in evidence.parts:
        if row["step"] == max(steps):
            tokens[row["domain"]] += row["tokens"]
            loss[row["domain"]] += row["tokens"] * row["loss"]
    means = {name: loss[name] / tokens[name] for name in tokens if tokens[name]}
    whole = sum(loss.values()) / max(sum(tokens.values()), 1)
    worst = max(means, key=lambda name: (means[name], name), default="")
    if len(means) > 1 and means[worst] > BEHIND * whole:
        share = tokens[worst] / sum(tokens.values())
        yield Finding(
            "mixture", "advice", f"Domain {worst} is learned worst.",
            f"Its dev loss is {means[worst]:.3f} nats per token, the mean is {whole:.3f}; "
            f"it has {percent(share)} of the dev tokens.",
            "select.domain_balance, select.domain_weights", f"A larger part for {worst}, or more text of it, "
            "where it matters to the goal.",
        )  # fmt: skip
