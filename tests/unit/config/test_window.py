"""When a run must be done: every way of saying it, and the two days a year on which clocks lie."""

from __future__ import annotations

from datetime import datetime

import pytest
from pydantic import ValidationError

from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.config.window import deadline
from pipeline_lib.errors import ConfigError

EVENING = "2026-11-20T22:00:00+01:00"


def end(finish_by: str, started: str, **limits: float) -> datetime:
    return deadline(ResourcesConfig(finish_by=finish_by, margin_minutes=limits.get("margin", 5)), datetime.fromisoformat(started))


@pytest.mark.parametrize(
    ("finish_by", "started", "expected"),
    [
        ("07:00 Europe/Berlin", EVENING, "2026-11-21T06:00:00+00:00"),
        ("23:30 Europe/Berlin", EVENING, "2026-11-20T22:30:00+00:00"),
        ("7:00 UTC", EVENING, "2026-11-21T07:00:00+00:00"),
        ("22:00 Europe/Berlin", EVENING, "2026-11-21T21:00:00+00:00"),  # now is over, so tomorrow
        ("07:00 America/New_York", EVENING, "2026-11-21T12:00:00+00:00"),
        ("07:00 Asia/Kathmandu", EVENING, "2026-11-21T01:15:00+00:00"),
        ("2026-11-21T07:00:00+01:00", EVENING, "2026-11-21T06:00:00+00:00"),
        ("2026-11-21T07:00Z", EVENING, "2026-11-21T07:00:00+00:00"),
        # the clocks go forward at 02:00 on 29 March 2026: the night is an hour shorter
        ("07:00 Europe/Berlin", "2026-03-28T22:00:00+01:00", "2026-03-29T05:00:00+00:00"),
        # and back at 03:00 on 25 October 2026: an hour longer
        ("07:00 Europe/Berlin", "2026-10-24T22:00:00+02:00", "2026-10-25T06:00:00+00:00"),
        # both readings of 02:30 are over, so the next one is meant
        ("02:30 Europe/Berlin", "2026-10-25T04:00:00+01:00", "2026-10-26T01:30:00+00:00"),
        ("02:30 Europe/Berlin", "2026-03-29T04:00:00+02:00", "2026-03-30T00:30:00+00:00"),
    ],
)
def test_one_moment(finish_by: str, started: str, expected: str) -> None:
    assert end(finish_by, started) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("2026-03-28T22:00:00+01:00", "2026-03-29 does not exist.*write 2026-03-29T01:30:00.01:00 or 2026-03-29T03:30:00.02:00"),
        ("2026-10-24T22:00:00+02:00", "2026-10-25 comes twice.*write 2026-10-25T02:30:00.02:00 or 2026-10-25T02:30:00.01:00"),
    ],
)  # fmt: skip
def test_a_time_that_the_clocks_skip_or_repeat_is_refused_with_what_to_write(started: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        end("02:30 Europe/Berlin", started)


@pytest.mark.parametrize(
    ("finish_by", "expected"),
    [
        ("07:00", "does not say in which zone"),
        ("07:00 CET", "'CET' is not the full name of a time zone"),
        ("07:00 CST", "write Region/City|did you mean"),
        ("07:00 Europe/Berln", "did you mean Europe/Berlin"),
        ("07:00 berlin", "did you mean Europe/Berlin"),
        ("25:00 UTC", "no time of day"),
        ("2026-11-21T07:00:00", "does not say in which zone; write the offset"),
        ("tomorrow", "is no time; write"),
    ],
)
def test_what_means_no_moment_is_refused_before_any_run(finish_by: str, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        ResourcesConfig(finish_by=finish_by)


@pytest.mark.parametrize(
    ("finish_by", "expected"),
    [
        ("2026-11-20T21:00:00+01:00", "it is in the past .1.0 hours before the start"),
        ("2027-11-20T21:00:00+01:00", "it is 36. days away"),
        ("22:04 Europe/Berlin", "only 4.0 minutes are left, all of them safety margin"),
    ],
)
def test_a_window_that_cannot_be_is_refused_at_the_start(finish_by: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        end(finish_by, EVENING)


def test_max_hours_counts_from_the_start() -> None:
    started = datetime.fromisoformat(EVENING)
    assert deadline(ResourcesConfig(max_hours=0.075, margin_minutes=0.25), started).isoformat() == "2026-11-20T21:04:30+00:00"
