"""Detectors, driven with numbers: each says what it should, once, and nothing of ordinary noise."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline_lib.training.signals import DIVERGENCE_WINDOW, PLATEAU_STEPS, Losses, NonFinite, Pace, Signal


def falling(steps: int, seed: int = 0) -> np.ndarray:
    """A loss that falls from 8 toward 3, with the noise of small batches."""
    noise = np.random.default_rng(seed).normal(0, 0.08, steps)
    return 3 + 5 * np.exp(-np.arange(steps) / 300) + noise


def told(losses: Sequence[float], planned: int = 2000) -> list[Signal]:
    watch = Losses(planned)
    return [signal for step, loss in enumerate(losses, start=1) for signal in watch.see(step, float(loss))]


@pytest.mark.parametrize("seed", range(5))
def test_an_ordinary_training_says_nothing(seed: int) -> None:
    assert told(falling(1500, seed)) == []


def test_a_long_plateau_of_small_batches_is_no_divergence() -> None:
    losses = np.random.default_rng(0).normal(2.0, 0.22, 12_000)
    assert [signal for signal in told(losses) if signal.signal == "divergence"] == []


def test_a_spike_is_one_signal_and_a_short_one_no_divergence() -> None:
    losses = falling(600)
    losses[400:403] += 3
    (signal,) = told(losses)
    assert (signal.signal, signal.step) == ("loss_spike", 401)
    assert signal.evidence["loss"] == losses[400]
    assert signal.evidence["mean"] == pytest.approx(losses[272:400].mean())


def test_a_loss_that_climbs_slowly_diverges_without_a_spike() -> None:
    losses = falling(900)
    losses[500:] += np.linspace(0, 4, 400)
    signals = told(losses)
    assert {signal.signal for signal in signals} == {"divergence"}
    assert 510 < signals[0].step < 600
    assert signals[0].evidence["median"] > signals[0].evidence["limit"] > signals[0].evidence["lowest_median"]
    gaps = np.diff([signal.step for signal in signals])
    assert (gaps >= DIVERGENCE_WINDOW).all()  # not one a step


def test_a_plateau_is_told_once_in_its_length() -> None:
    losses = np.concatenate([falling(300), np.full(1200, 4.8)])
    signals = [signal for signal in told(losses) if signal.signal == "plateau"]
    assert len(signals) == 2
    assert signals[1].step - signals[0].step == PLATEAU_STEPS


def test_what_a_detector_knows_survives_a_checkpoint_to_the_bit() -> None:
    losses = falling(800)
    losses[500:] += np.linspace(0, 4, 300)
    losses[450] += 5
    whole = told(losses)
    before = Losses(2000)
    early = [signal for step in range(1, 521) for signal in before.see(step, float(losses[step - 1]))]
    after = Losses(2000)
    after.restore(json.loads(json.dumps(before.state())))
    late = [signal for step in range(521, 801) for signal in after.see(step, float(losses[step - 1]))]
    assert [signal.to_json() for signal in early + late] == [signal.to_json() for signal in whole]
    assert len(whole) > 1
    fresh = Losses(2000)
    fresh.restore(json.loads(json.dumps(Losses(2000).state())))
    assert fresh.lowest == math.inf


def test_steps_that_are_not_finite_are_counted() -> None:
    watch = NonFinite()
    assert watch.see(1, 2.0, 1.0, applied=True) is None
    first, second = watch.see(2, math.nan, 1.0, applied=False), watch.see(3, 2.0, math.inf, applied=False)
    assert first is not None
    assert second is not None
    assert (second.evidence["in_a_row"], second.evidence["in_all"], second.evidence["grad_norm"]) == (2, 2, "inf")
    assert watch.see(4, 2.0, 1.0, applied=True) is None
    assert (watch.in_a_row, watch.total) == (0, 2)


def test_a_slow_step_and_a_fall_of_speed() -> None:
    watch = Pace()
    seconds = [9.0] + [0.2 + 0.01 * (i % 3) for i in range(99)] + [2.0] + [0.2] * 50 + [0.4] * 120
    signals = [signal for step, took in enumerate(seconds, start=1) for signal in watch.see(step, took)]
    assert [signal.signal for signal in signals] == ["slow_step", "slow_down"]
    assert signals[0].step == 101
    assert 150 < signals[1].step < 230
    assert signals[1].evidence["step_seconds"] == pytest.approx(0.4)
