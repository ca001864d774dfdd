"""Example of a rule set: what to keep of a support archive. Chosen with `score.rules: {support: support}`."""

from __future__ import annotations

from pipeline_lib.extensions import extend

# Rule name -> SQL expression over the columns of `signals`, true for a document to keep. A rejected document names its rule.
extend.rule_set(
    "support",
    {
        "long_enough": "characters >= 200",
        "short_enough": "characters <= 200000",
        "has_words": "words >= 30",
    },
)
