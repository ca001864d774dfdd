"""The report as a person opens it: a file, in a browser, on a desk or on a phone, by day or by night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.workspace.runs import RunRecord

# The contrast ratio of WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio) of every text with
# what is behind it.
CONTRASTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const holder = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || holder.closest("style") || !holder.getClientRects().length) continue;
    const style = getComputedStyle(holder);
    const [a, b] = [rgb(holder.closest("svg") ? style.fill : style.color), behind(holder)].map(luminance);
    found.push({text: text.slice(0, 40), ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)});
  }
  return found;
}"""


@pytest.fixture
def report(shown: RunRecord) -> str:
    return Path(shown.report).as_uri()


def test_it_says_the_verdict_and_asks_nothing_of_the_network(page: Any, report: str, shown: RunRecord) -> None:
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report)
    heading = page.locator("h1")
    assert heading.is_visible()
    assert {"pass": "Passed", "fail": "Did not pass"}[shown.verdict["outcome"]] in heading.inner_text()
    for reason in shown.verdict["reasons"]:
        assert page.get_by_text(reason).first.is_visible()
    assert asked == [report]
    assert complaints == []


def test_every_picture_says_what_it_shows(page: Any, report: str) -> None:
    page.goto(report)
    labels = page.eval_on_selector_all("svg", "all => all.map(one => one.getAttribute('aria-label') || '')")
    assert len(labels) >= 3
    assert all(len(label) > 10 for label in labels), labels


def test_a_phone_needs_no_sideways_scrolling(page: Any, report: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(report)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(page: Any, report: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(report)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [entry for entry in found if entry["ratio"] < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_its_links_lead_to_the_run(page: Any, report: str, shown: RunRecord) -> None:
    page.goto(report)
    assert page.get_by_role("link", name="This run in MLflow").get_attribute("href") == shown.mlflow["url"]
    assert page.get_by_role("link", name="This run in Prefect").get_attribute("href") == shown.prefect["url"]
