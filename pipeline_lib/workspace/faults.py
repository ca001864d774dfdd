"""Commit points at which a test may kill the process: `MILLRACE_FAULT=point` or `point:n` (the n-th passage, from 1)."""

from __future__ import annotations

import os
import signal
from collections import Counter

POINTS = {
    "shard.before_commit": "a shard's files are written, its record is not",
    "shard.after_commit": "a shard is committed in the work folder",
    "publish.before_sync": "all files are in place, nothing is synced",
    "publish.before_rename": "the artifact folder is complete but has no manifest",
    "publish.before_manifest": "the folder has its final name, the manifest is missing",
    "publish.after_manifest": "the artifact is committed, the run record does not know",
    "record.before_save": "the run record is about to change",
    "step.before_micro_batch": "a training step has some of its gradients",
    "evaluation.midway": "an evaluation has read some of its batches",
    "checkpoint.copied": "the state is copied in memory, nothing of it is on disk",
    "checkpoint.file_written": "some of a checkpoint's files are written",
    "checkpoint.before_commit": "a checkpoint's files are written, it is not committed",
    "checkpoint.after_commit": "a checkpoint is committed",
    "cache.before_commit": "a chunk is written beside, not renamed",
    "cache.after_commit": "a chunk is committed",
    "forget.before_manifest": "an artifact has its segments without the forgotten document, its manifest names the old ones",
    "forget.after_manifest": "the manifest names the new segments, the old ones are still there",
    "promote.before_champion": "the verdict is known, the champion is the old one",
    "memory.before_save": "a run has ended, nothing of it is remembered yet",
    "memory.before_cold": "a file of old memories is written beside, not renamed",
    "memory.after_cold": "old memories are in cold, and still in warm",
    "promote.after_champion": "the champion moved, the registry does not know",
}

_passages: Counter[str] = Counter()


def fault_point(point: str) -> None:
    """Die here by SIGKILL if the environment asks for it; otherwise do nothing."""
    wanted = os.environ.get("MILLRACE_FAULT")
    if not wanted:
        return
    name, _, number = wanted.partition(":")
    if name == point:
        _passages[point] += 1
        if _passages[point] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
