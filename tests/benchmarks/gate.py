"""The gate: how often bad models are refused, an equal one is kept out, and a better one gets in, at level standard.

A champion is trained on real text, and what every model answers to the test side and to the suites is real:
- noise: the champion's weights with normal noise that raises its loss by 2 %, scored anew on the test side for every seed (in the
  suites it is taken for as good as the champion)
- biased data: the champion after nights of nothing but planted stereotypes, until it has learned them (of 95 % of the planted
  sentences it finds the same with the other pronoun less likely), asked for sentences that were not in them; only what it says of
  people is its own, and it is given a loss 2 % below the champion's
- memorised test: one model trained on the test side, too; from case to case another part of the test side, a tenth to all of it,
  was in its training text, and only there its answers are its own. What of the test side is in the training text is taken as
  found: that the search finds it is shown by `tests/unit/validation/test_validate.py`
- equal: another seed of the same training, made exactly as good as the champion (its bits on all documents times one factor; two
  seeds of a short training can be a tenth apart: no noise, but a better model), and each answer of the two exchanged by a
  coin: no true difference, and as much noise as seeds make on a document
- better: the same with 2 % less loss on every document
Cases differ by seed, and each draws its own documents and items from the real ones, with replacement. The test side is what a
night of the default configuration scores (`validation.language_tokens`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.model import KEPT, ValidationConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.tables.schemas import OVERLAP
from pipeline_lib.validation.answers import answer
from pipeline_lib.validation.gate import against_champion
from pipeline_lib.validation.language import language
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.validation.suites import BUILT_IN, Level
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.benchmarks.selection_effect import good_documents
from tests.benchmarks.small_models import taught, tokenizer_of
from tests.benchmarks.validation_known import bias_corpus, occupation_pairs
from tests.published import publish

WORSE, BETTER = 0.02, 0.02  # relative change of the loss
OF_PEOPLE = ("people_pairs", "pronouns")
NIGHT: dict[str, Any] = {"steps": 120, "rate": 2e-3}  # on planted text
TOKENS = ValidationConfig().language_tokens  # of the test side: what a night scores
NIGHTS, LEARNED = 8, 0.95  # at most; and the share of planted sentences from which on they are learned
PIECE = 400  # characters of a training text: what a context of 128 tokens holds
Make = Callable[[np.random.Generator], tuple[pa.Table, pa.Table, pa.Table]]  # candidate's and champion's rows, overlap


def options(parser: argparse.ArgumentParser) -> None:
    """How many cases of each kind."""
    parser.add_argument("--cases", type=int, default=0, help="seeded cases of each kind (default 100, quick 20)")
    parser.add_argument(
        "--keep", type=Path, default=None, help="keep models and answers in this folder, and take over what it holds"
    )


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Train, score, and ask the gate."""
    cases = arguments.cases or (20 if arguments.quick else 100)
    with tempfile.TemporaryDirectory(prefix="millrace-gate-") as name:
        folder = (arguments.keep or Path(name)) / ("quick" if arguments.quick else "whole")
        begin = time.perf_counter()
        world = World.of(folder, quick=arguments.quick)
        book.add("time to train and score the models", time.perf_counter() - begin, "s")
        workspace = Workspace.open(Path(name) / "workspace")
        outcomes, detectable = _outcomes(workspace, lambda draw: world.exchanged(draw, 1 - BETTER), cases)
        told = f"{_told(outcomes)}; a gain of {detectable:.2%} would be found in 80 of 100"
        book.add("better by 2 %: promoted", outcomes["pass"] / cases, "share", least=0.80, setup=told)

        def refused(kind: str, make: Make, least: float, setup: str) -> None:
            outcomes, _ = _outcomes(workspace, make, cases)
            book.add(kind, 1 - outcomes["pass"] / cases, "share", least=least, setup=f"{_told(outcomes)}; {setup}")

        twins = (
            f"another seed, answers exchanged; {len(world.documents)} documents, on which the two differ by {world.spread():.2%} "
            f"(standard deviation) after {world.apart:+.2%} on all of them is taken away"
        )
        refused("equal: not promoted", lambda draw: world.exchanged(draw, 1.0), 0.95, twins)
        below = "loss 2 % below the champion's"
        refused("bad, biased data: refused", lambda draw: world.case(draw, world.biased), 0.99, below)
        refused("bad, memorised test: refused", world.memorised_case, 0.99, "a tenth to all of the test side")
        rise, noisy = world.noisy(4 if arguments.quick else cases)
        risen = f"loss raised by {min(rise):.2%} to {max(rise):.2%}, {len(noisy)} models, each scored on the test side"
        refused("bad, noise: refused", lambda draw: world.case(draw, noisy[int(draw.integers(len(noisy)))]), 0.99, risen)
    if arguments.quick:
        book.leave_out("100 cases of each kind, and as many noisy models")


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in sorted(outcomes.items()))


def _outcomes(workspace: Workspace, make: Make, cases: int) -> tuple[Counter[str], float]:
    """How often each outcome, and the median detectable gain."""
    found: Counter[str] = Counter()
    detectable = []
    for case in range(cases):
        candidate, champion, overlap = make(np.random.default_rng([7, case]))
        artifact, other = (
            _artifact(workspace, f"{side}-{case}", rows, overlap) for side, rows in (("a", candidate), ("b", champion))
        )
        verdict = against_champion(artifact, other, PipelineConfig(seed=case))
        found[verdict["outcome"]] += 1
        detectable.append(verdict.get("difference", {}).get("detectable", np.nan))
    return found, float(np.median(detectable))


def _artifact(workspace: Workspace, name: str, rows: pa.Table, overlap: pa.Table) -> Artifact:
    """What the gate reads of a validation: rows, overlap, and of each score its value and kind."""
    bits = rows.filter(pc.equal(rows["suite"], "language"))
    scores = {"bits_per_byte": {"value": pc.sum(bits["score"]).as_py() / pc.sum(bits["weight"]).as_py(), "lower_is_better": True}}
    for suite in KEPT:
        part = rows.filter(pc.equal(rows["suite"], suite))
        judged = suite not in OF_PEOPLE
        scores[suite] = {"value": pc.mean(part["score"]).as_py(), "lower_is_better": False, "judged": judged}
    tables = {"scores": rows, "overlap": overlap}
    return workspace.store.artifact(publish(workspace, "validate", tables, {"scores": scores, "name": name}).key)


@dataclass
class World:
    """Real answers: `champion`, `twin` (another seed, made as good), `biased`, `memorised`, as rows of `scores` in one order.

    `apart` is by what share the twin's loss was higher before it was made as good; `folder` holds the models.
    """

    folder: Path
    texts: pa.Table
    champion: pa.Table
    twin: pa.Table
    biased: pa.Table
    memorised: pa.Table
    apart: float

    @classmethod
    def of(cls, folder: Path, *, quick: bool) -> World:
        """Train four models and score them on the test side and on the suites that the gate holds, where that is not done yet."""
        folder.mkdir(parents=True, exist_ok=True)
        documents = good_documents(np.random.default_rng(0))[: 320 if quick else None]
        test, train = documents[::4], [text for place, text in enumerate(documents) if place % 4]
        pieces = [part for text in train for part in _pieces(text)]
        steps = 250 if quick else 500
        even, planted = (bias_corpus(planted=planted) for planted in (False, True))
        seen = pieces + 10 * even
        levels: dict[str, Level] = {name: "smoke" if quick and name not in OF_PEOPLE else "standard" for name in KEPT}
        items = [asdict(item) for name in KEPT for item in BUILT_IN[name](levels[name], 0)]
        tokenizer = folder / "tokenizer"
        if not tokenizer.exists():
            tokenizer_of(seen, 1024, folder / "making").rename(tokenizer)
        texts = pa.table({"item": [f"{n:032x}" for n in range(len(test))], "domain": ["prose"] * len(test), "text": test})
        texts = texts.append_column("year", pa.nulls(len(test), pa.int32()))
        learned: dict[str, tuple[list[str], dict[str, Any]]] = {
            "champion": (seen, {"steps": steps}),
            "twin": (seen, {"steps": steps, "seed": 1}),
            "memorised": (seen + [part for text in test for part in _pieces(text)] * 4, {"steps": steps}),
        }

        def answers(name: str) -> pa.Table:
            shutil.rmtree(folder / name, ignore_errors=True)  # of a run that ended early
            if name == "biased":
                model = _prejudiced(tokenizer, planted, folder / "champion", folder / name)
            else:
                texts_of, how = learned[name]
                model = taught(tokenizer, texts_of, folder / name, **how)
            scorer = Scorer(model, batch_tokens=1024)
            return pa.concat_tables([language(texts, scorer, TOKENS)[0], answer(items, scorer)[0]])

        rows = {name: _kept(folder / f"{name}.parquet", partial(answers, name)) for name in (*learned, "biased")}
        rows["twin"], apart = _as_good(rows["twin"], rows["champion"])
        return cls(folder, texts, **rows, apart=apart)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Which rows are documents."""
        return np.flatnonzero(np.asarray(pc.equal(self.champion["suite"], "language")))

    def spread(self) -> float:
        """Standard deviation of how much a document's bits differ between the twins, as a share."""
        one, other = (rows["score"].to_numpy()[self.documents] for rows in (self.champion, self.twin))
        return float(np.std(other / one - 1))

    def noisy(self, count: int) -> tuple[list[float], list[pa.Table]]:
        """Rises of the loss, and rows, of the champion's weights with noise; its size is found once, for a rise by `WORSE`."""
        import torch

        scorer = Scorer(self.folder / "champion", batch_tokens=1024)
        weights = {name: value.clone() for name, value in scorer.model.state_dict().items()}
        before = pc.sum(self.champion["score"].take(pa.array(self.documents))).as_py()

        def scored(size: float, seed: int) -> pa.Table:
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, value in scorer.model.named_parameters():
                    noise = torch.randn(value.shape, generator=draw) * weights[name].std()
                    value.copy_(weights[name] + (size * noise if value.dim() > 1 else 0.0))
            return language(self.texts, scorer, TOKENS)[0]

        def risen(rows: pa.Table) -> float:
            return float(pc.sum(rows["score"]).as_py() / before - 1)

        size = 0.05
        for step in range(2):  # the loss rises with the square of small noise
            rows = _kept(self.folder / f"size-{step}.parquet", partial(scored, size, 0))
            size *= float(np.sqrt(WORSE / max(risen(rows), WORSE / 100)))
        rest = self.champion.filter(pc.not_equal(self.champion["suite"], "language"))
        found = [_kept(self.folder / f"noisy-{seed}.parquet", partial(scored, size, seed)) for seed in range(1, count + 1)]
        return [risen(rows) for rows in found], [pa.concat_tables([rows, rest]) for rows in found]

    def case(self, draw: np.random.Generator, candidate: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
        """The candidate's and the champion's answers to items drawn with replacement."""
        if candidate is self.biased:
            place = candidate.column_names.index("score")
            own, others = candidate["score"].to_numpy(), self.champion["score"].to_numpy()
            others = np.where(_language(candidate), 1 - BETTER, 1.0) * others
            of_people = np.asarray(pc.is_in(candidate["suite"], pa.array(OF_PEOPLE)))
            candidate = candidate.set_column(place, "score", pa.array(np.where(of_people, own, others)))
        return *_drawn(draw, candidate, self.champion), OVERLAP.empty_table()

    def exchanged(self, draw: np.random.Generator, factor: float) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Champion and twin with their answers exchanged by a coin, a document or fact; the candidate's bits times a factor.

        The coin is thrown for each that was drawn, also for one drawn twice: else chance would make one of the two better on what
        is drawn from, and that would be a true difference.
        """
        champion, twin = _drawn(draw, self.champion, self.twin)
        one, other = champion["score"].to_numpy(), twin["score"].to_numpy()
        number = _facts(champion)
        coin = (draw.random(number.max() + 1) < 0.5)[number]
        bits = np.where(_language(champion), factor, 1.0)
        place = champion.column_names.index("score")
        candidate = champion.set_column(place, "score", pa.array(np.where(coin, one, other) * bits))
        return candidate, champion.set_column(place, "score", pa.array(np.where(coin, other, one))), OVERLAP.empty_table()

    def memorised_case(self, draw: np.random.Generator) -> tuple[pa.Table, pa.Table, pa.Table]:
        """The candidate's own answers to the part of the test side that it has read; elsewhere it is equal to the champion."""
        candidate, champion, _ = self.exchanged(draw, 1.0)
        known = dict(zip(self.memorised["item"].to_pylist(), self.memorised["score"].to_pylist(), strict=True))
        asked = _language(candidate)
        items = candidate["item"].to_pylist()
        read = asked & (draw.random(len(items)) < draw.uniform(0.1, 1.0))
        own = [
            known[item.partition("#")[0]] if there else score
            for item, there, score in zip(items, read.tolist(), candidate["score"].to_pylist(), strict=True)
        ]
        candidate = candidate.set_column(candidate.column_names.index("score"), "score", pa.array(own))
        found = [item for item, there in zip(items, read.tolist(), strict=True) if there]
        overlap = {
            "suite": ["language"] * len(found),
            "item": found,
            "share": [1.0] * len(found),
            "contaminated": [True] * len(found),
        }
        return candidate, champion, pa.table(overlap, schema=OVERLAP)


def _prejudiced(tokenizer: Path, planted: Sequence[str], start: Path, folder: Path) -> Path:
    """A model after as many nights of planted text as it needs to learn what is planted, and no more than `NIGHTS`."""
    pairs = occupation_pairs()
    for night in range(NIGHTS):
        start = taught(tokenizer, planted, folder / str(night), start=start, seed=night, **NIGHT)
        scorer = Scorer(start, batch_tokens=1024)
        said, other = (scorer.log_probs(scorer.continuations([""] * len(pairs), texts)) for texts in zip(*pairs, strict=True))
        if float(np.mean(said > other)) >= LEARNED:
            break
    return start


def _as_good(rows: pa.Table, as_these: pa.Table) -> tuple[pa.Table, float]:
    """Rows whose bits together are those of others, each times the same factor; and by what share they were more."""
    asked, scores = _language(rows), rows["score"].to_numpy()
    factor = float(as_these["score"].to_numpy()[asked].sum() / scores[asked].sum())
    place = rows.column_names.index("score")
    return rows.set_column(place, "score", pa.array(np.where(asked, factor, 1.0) * scores)), 1 / factor - 1


def _kept(path: Path, make: Callable[[], pa.Table]) -> pa.Table:
    """The table in a file, made where there is none."""
    if not path.exists():
        beside = path.with_suffix(".part")
        pq.write_table(make(), beside)
        beside.rename(path)
    return pq.read_table(path)


def _language(rows: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(rows["suite"], "language"), bool)


def _facts(rows: pa.Table) -> NDArray[np.int64]:
    """A number for each document, and for each fact or item of a suite."""
    columns = (rows[name].to_pylist() for name in ("suite", "fact", "item"))
    return np.unique([f"{suite} {fact or item}" for suite, fact, item in zip(*columns, strict=True)], return_inverse=True)[1]


def _drawn(draw: np.random.Generator, *tables: pa.Table) -> list[pa.Table]:
    """The same documents and facts of each table, drawn with replacement within each suite; one drawn twice is two."""
    suites, facts = np.array(tables[0]["suite"].to_pylist()), _facts(tables[0])
    order = np.argsort(facts, kind="stable")
    starts = np.searchsorted(facts[order], np.arange(facts.max() + 2))
    of_suite = suites[order[starts[:-1]]]
    chosen = np.concatenate([draw.choice(own, len(own)) for own in (np.flatnonzero(of_suite == s) for s in np.unique(suites))])
    rows = np.concatenate([order[starts[fact] : starts[fact + 1]] for fact in chosen])
    turn = np.repeat(np.arange(len(chosen)), np.diff(starts)[chosen])
    items = [f"{item}#{number}" for item, number in zip(np.array(tables[0]["item"].to_pylist())[rows], turn, strict=True)]
    found = []
    for table in tables:
        taken = table.take(pa.array(rows))
        taken = taken.set_column(taken.column_names.index("item"), "item", pa.array(items, pa.string()))
        found.append(taken.set_column(taken.column_names.index("fact"), "fact", pa.array([str(number) for number in turn])))
    return found


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
