"""Pictures of the report as inline SVG, with titles and units; their text has the page's colour, so light and dark both read."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.reporting.gather import Facts

Floats = NDArray[np.float64]
BLUE, ORANGE, GREEN = "#3b82c4", "#d97706", "#2f9e6e"  # told apart by brightness too
COLOURS, LINES = (BLUE, ORANGE, GREEN, "#8b5cc7"), ("-", "--", ":", "-.")
STYLE: Any = {  # matplotlib's own type of this is a list of all its settings
    "svg.fonttype": "none",
    "svg.hashsalt": "millrace",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "grid.color": "#808080",
}
MARKERS = {"loss_spike": "^", "divergence": "^", "non_finite": "x", "recovery": "v", "resumed": ">"}
MAX_DOMAINS = 8
MAX_SLICES = 4  # searched things, the most important ones
MAX_MARKS = 200  # of one kind of event
MAX_POINTS = 2000  # of a curve; more than a screen has pixels


def _svg(figure: Any, alt: str) -> str:
    """The figure as an SVG element with alternative text; black becomes the page's text colour, the background stays clear."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = text.replace("#000000", "currentColor").replace("#808080", "currentColor")
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)


def _figure(width: float = 7.2, height: float = 2.8) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def thinned(table: pa.Table, name: str) -> Floats:
    """A column in at most `MAX_POINTS` means of neighbours: every step is in the picture, none of its size."""
    values = np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    size = -(-len(values) // MAX_POINTS)
    if size <= 1:
        return values
    padded = np.pad(values, (0, -len(values) % size), constant_values=np.nan).reshape(-1, size)
    kept = np.isfinite(padded)
    means: Floats = np.where(kept, padded, 0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return means


def funnel(facts: Facts) -> str:
    """How many documents are left after each decision."""
    if not facts.funnel:
        return ""
    figure, axes = _figure(height=0.34 * len(facts.funnel) + 0.7)
    labels, values = [name for name, _ in facts.funnel], [value for _, value in facts.funnel]
    bars = axes.barh(range(len(labels)), values, color=BLUE)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=3)
    axes.set_xlabel("documents")
    axes.set_title("From records to chosen documents", loc="left")
    return _svg(figure, "Documents after each decision: " + ", ".join(f"{n} {v:,}" for n, v in facts.funnel))


def loss(facts: Facts) -> str:
    """Training and dev loss over steps, with the learning rate and the events marked."""
    if facts.curve is None or not len(facts.curve):
        return ""
    figure, axes = _figure(height=3.1)
    curve = facts.curve
    steps, losses, rates = thinned(curve, "step"), thinned(curve, "loss"), thinned(curve, "lr")
    axes.plot(steps, losses, color=BLUE, linewidth=1, label="training loss")
    if facts.dev_curve:
        axes.plot(*zip(*facts.dev_curve, strict=True), color=ORANGE, marker="o", markersize=3, label="dev loss")
    for kind in sorted({kind for _, kind in facts.log.marks}):
        places = [place for place, name in facts.log.marks if name == kind][:MAX_MARKS]
        marker = MARKERS.get(kind, "|")
        axes.plot(places, [1.0] * len(places), marker, color=ORANGE, clip_on=False, transform=axes.get_xaxis_transform(),
                  label=kind.replace("_", " "))  # fmt: skip
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss [nats per token]")
    rate = axes.twinx()
    rate.plot(steps, rates, color=GREEN, linewidth=1, linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate")
    rate.grid(visible=False)
    lines = [*axes.get_lines(), *rate.get_lines()]
    figure.legend(lines, [line.get_label() for line in lines], frameon=False, loc="outside lower center", ncols=5)
    axes.set_title("Loss and learning rate", loc="left")
    last = facts.dev_curve[-1][1] if facts.dev_curve else float(curve["loss"][-1].as_py())
    return _svg(figure, f"Loss over {int(steps[-1])} steps, from {float(curve['loss'][0].as_py()):.2f} to {last:.2f}")


def speed(facts: Facts) -> str:
    """Tokens a second over steps."""
    if facts.curve is None or not len(facts.curve):
        return ""
    figure, axes = _figure(height=1.9)
    axes.plot(thinned(facts.curve, "step"), thinned(facts.curve, "tokens_per_second"), color=BLUE, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("tokens/s")
    axes.set_title("Training speed", loc="left")
    return _svg(figure, "Training speed in tokens per second over steps")


def trials(facts: Facts) -> str:
    """Every trial's dev loss, and the best so far."""
    done = [trial for trial in facts.trials if trial.get("dev_loss") is not None]
    if len(done) < 2:
        return ""
    figure, axes = _figure(height=2.1)
    numbers = [trial["number"] for trial in done]
    losses = [trial["dev_loss"] for trial in done]
    best = [min(losses[: i + 1]) for i in range(len(losses))]
    axes.scatter(numbers, losses, color=BLUE, label="trial")
    axes.step(numbers, best, color=ORANGE, where="post", label="best so far")
    axes.set_xticks(numbers[:: max(1, len(numbers) // 20)])
    axes.set_xlabel("trial")
    axes.set_ylabel("dev loss [nats per token]")
    axes.legend(frameon=False)
    axes.set_title("Hyperparameter search", loc="left")
    return _svg(figure, f"Dev loss of {len(done)} trials, best {min(losses):.3f}")


def search(facts: Facts) -> str:
    """The trials' loss along each thing that was searched, with how much it mattered; the most important ones."""
    shares, slices = facts.search.get("importance", {}), facts.search.get("slices", {})
    names = sorted(slices, key=lambda name: -shares.get(name, 0.0))[:MAX_SLICES]
    if not names or len(slices[names[0]]) < 2:
        return ""
    figure, first = _figure(height=2.1)
    first.remove()
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        values, losses = [value for value, _ in slices[name]], [loss for _, loss in slices[name]]
        words = any(isinstance(value, str) for value in values)
        axes.scatter([str(value) for value in values] if words else values, losses, color=BLUE, s=12)
        if not words and max(values) > 10 * min(values) > 0:
            axes.set_xscale("log")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlabel(name.replace("_", " "))
        axes.set_title(f"{shares[name]:.0%}" if name in shares else "", loc="left")
        if not place:
            axes.set_ylabel("expected dev loss")
    told = ", ".join(f"{name} {shares[name]:.0%}" for name in names if name in shares)
    return _svg(figure, f"Loss of the trials along what was searched; importance: {told or 'too few trials'}")


def domains(facts: Facts) -> str:
    """Dev loss of every domain over the evaluations."""
    sums: dict[str, dict[int, tuple[int, float]]] = {}
    for row in facts.log.parts:
        of = sums.setdefault(row["domain"] or "none", {})
        tokens, total = of.get(row["step"], (0, 0.0))
        of[row["step"]] = tokens + row["tokens"], total + row["tokens"] * row["loss"]
    largest = sorted(sums, key=lambda name: (-max(tokens for tokens, _ in sums[name].values()), name))[:MAX_DOMAINS]
    if not largest or max(len(of) for of in sums.values()) < 2:
        return ""
    figure, axes = _figure(height=2.6)
    last = {}
    for number, name in enumerate(largest):
        points = [(step, total / tokens) for step, (tokens, total) in sorted(sums[name].items()) if tokens]
        last[name] = points[-1][1]
        axes.plot(*zip(*points, strict=True), color=COLOURS[number % 4], linestyle=LINES[number // 4], marker="osv^"[number % 4],
                  markersize=3, linewidth=1, label=name)  # fmt: skip
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("dev loss [nats per token]")
    axes.legend(frameon=False, ncols=2)
    axes.set_title("Dev loss by domain", loc="left")
    return _svg(figure, "Dev loss by domain, at the end: " + ", ".join(f"{name} {value:.3f}" for name, value in last.items()))


def landscape(facts: Facts) -> str:
    """The loss on test text around the model, along the random directions that were walked."""
    lines: dict[int, list[tuple[float, float]]] = {}
    for row in facts.landscape:
        lines.setdefault(row["direction"], []).append((row["distance"], row["bits_per_byte"]))
    if not lines:
        return ""
    figure, axes = _figure(height=2.4)
    for number, direction in enumerate(sorted(lines)):
        axes.plot(*zip(*sorted(lines[direction]), strict=True), color=COLOURS[number % 4], linestyle=LINES[number // 4 % 4],
                  marker="osv^"[number % 4], markersize=3, linewidth=1, label=f"direction {direction + 1}")  # fmt: skip
    axes.axvline(0.0, color="#808080", linewidth=0.8, linestyle=":")
    axes.set_xlabel("distance from the model [lengths of its weights]")
    axes.set_ylabel("test text [bits per byte]")
    axes.legend(frameon=False)
    axes.set_title("Loss landscape around the model", loc="left")
    every = [point for line in lines.values() for point in line]
    here = min(every, key=lambda point: abs(point[0]))[1]
    far = max(distance for distance, _ in every)
    ends = ", ".join(f"{max(line)[1]:.3f}" for _, line in sorted(lines.items()))
    return _svg(figure, f"Bits per byte around the model: {here:.3f} at the model, {ends} at distance {far:g}, one a direction")


def courses(drawn: Sequence[tuple[str, Floats, Floats, Floats, Floats]], axis: str) -> str:
    """Dev loss of several groups over the same axis: (label, places, mean, low, high) each; bands where there are seeds."""
    if len(drawn) < 1:
        return ""
    figure, axes = _figure(height=2.6)
    for number, (label, places, mean, low, high) in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(places, mean, color=colour, linestyle=LINES[number // len(COLOURS) % len(LINES)], marker="osv^"[number % 4],
                  markersize=3, linewidth=1, label=label)  # fmt: skip
        if np.any(high > low):
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel(axis)
    axes.set_ylabel("dev loss [nats per token]")
    axes.legend(frameon=False)
    axes.set_title(f"Dev loss over {axis}", loc="left")
    return _svg(
        figure, f"Dev loss over {axis}, at the end: " + ", ".join(f"{label} {mean[-1]:.3f}" for label, _, mean, _, _ in drawn)
    )
