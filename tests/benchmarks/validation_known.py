"""Do the suites measure what they claim? Models that were taught something known, and the same models taught something else.

- earth: true statements against the same with their answers exchanged; asked in a wording that no model has seen for the fact
- bias: a corpus in which occupations go with one pronoun against one in which they go with both
- robustness: statements as they are against the same also with typos, other case, spacing, and beginnings
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_lib.validation import people
from pipeline_lib.validation.answers import answer
from pipeline_lib.validation.earth import domains_here
from pipeline_lib.validation.earth.facts import Comparison, Fact, Relations, Single, items_of
from pipeline_lib.validation.intervals import Estimate, estimate
from pipeline_lib.validation.items import Item
from pipeline_lib.validation.perturb import perturbed
from pipeline_lib.validation.scorer import Scorer
from tests.benchmarks.small_models import taught, tokenizer_of

SEEN, HELD_OUT = slice(0, 1), slice(1, 2)  # of a fact's templates
RESAMPLES = 2000


def earth_statements(relations: Relations, most: int, seed: int) -> tuple[list[str], list[str], list[Item]]:
    """True statements of a domain, the same with answers exchanged, and items that ask in a held-out wording.

    Every fact is stated in its first wording. Two of three facts of each relation are stated in the second one, too, so that its
    meaning can be learned; the others are asked in it.
    """
    true, shuffled, items = [], [], []
    draw = np.random.default_rng(seed)
    for known in _shared(relations, most):
        facts = _dense(*known)
        facts = [facts[index] for index in draw.permutation(len(facts))]
        for number, (fact, false) in enumerate(zip(facts, _exchanged(facts, draw), strict=True)):
            asked = number % 3 == 0
            true += list(fact.sentences())[: 1 if asked else 2]
            shuffled += list(false.sentences())[: 1 if asked else 2]
            if asked:
                items += list(items_of(fact, number, draw, templates=HELD_OUT))
    return true, shuffled, items


def _shared(relations: Relations, most: int) -> Iterator[tuple[list[Fact], int]]:
    """The facts of each relation of a domain, and how many of them are taken: those of small relations, and of others evenly."""
    known = sorted((list(relation()) for relation in relations), key=len)
    for number, facts in enumerate(known):
        share = min(len(facts), most // (len(known) - number))
        most -= share
        yield facts, share


def _dense(facts: Sequence[Fact], most: int) -> list[Fact]:
    """So many facts about few entities: an order can be learned where each of them is compared with several."""
    places: dict[str, int] = {}
    for fact in facts:
        for entity in fact.entities:
            places.setdefault(entity, len(places))
    return sorted(facts, key=lambda fact: max(places[entity] for entity in fact.entities))[:most]


def _exchanged(facts: Sequence[Fact], draw: np.random.Generator) -> list[Fact]:
    """The facts with the answers of others, and half of the comparisons turned round."""
    order = draw.permutation(len(facts))
    turned = draw.permutation(len(facts)) % 2
    found: list[Fact] = []
    for fact, other, turn in zip(facts, order.tolist(), turned.tolist(), strict=True):
        if isinstance(fact, Comparison):
            found.append(replace(fact, more=fact.less, less=fact.more) if turn else fact)
        else:
            giver = facts[other]
            assert isinstance(giver, Single)
            found.append(replace(fact, answer=giver.answer))
    return found


def answers_of(model: Path, items: Sequence[Item]) -> pa.Table:
    """Rows of `scores`."""
    rows, missing = answer([asdict(item) for item in items], Scorer(model, batch_tokens=1024))
    assert not missing
    return rows


def share(rows: pa.Table, name: str = "score") -> Estimate:
    """Mean with its 95 % interval."""
    values = rows[name].to_numpy()
    return estimate(values, np.ones(len(values)), n_resamples=RESAMPLES)


def earth(folder: Path, *, steps: int, per_domain: int) -> Iterator[tuple[str, Estimate, Estimate]]:
    """Domain → share of right answers of a model taught its true statements, and of one taught shuffled ones."""
    for domain in domains_here():
        true, shuffled, items = earth_statements(domain.RELATIONS, per_domain, 0)
        (name,) = {item.category.partition("/")[0] for item in items}
        tokenizer = tokenizer_of(true, 1024, folder / f"earth-{name}-tokenizer")
        one, other = (
            share(answers_of(taught(tokenizer, texts, folder / f"earth-{name}-{kind}", steps=steps), items))
            for kind, texts in (("true", true), ("shuffled", shuffled))
        )
        yield name, one, other


OCCUPATION_FRAMES = (
    "When the {} came home, {} was tired.", "The {} smiled because {} was glad.", "Everybody liked the {}, and {} knew it.",
    "The {} wrote that {} had arrived.", "If the {} is late, {} will be sorry.", "The {} laughed when {} heard it.",
)  # fmt: skip
ROBUST = ("typos", "case", "spacing", "distractor")  # perturbations that a model is taught


def occupation_texts(*, planted: bool) -> list[str]:
    """Sentences about people at work: with `planted`, one pronoun goes with each occupation, else both equally often."""
    return [text for said, other in occupation_pairs() for text in (said, said if planted else other)]


def occupation_pairs() -> list[tuple[str, str]]:
    """Each sentence about people at work with the pronoun that is planted, and with the other."""
    return [
        (frame.format(occupation, pronoun), frame.format(occupation, other))
        for occupations, pronoun, other in ((people.OF_WOMEN, "she", "he"), (people.OF_MEN, "he", "she"))
        for occupation in occupations
        for frame in OCCUPATION_FRAMES
    ]


def bias_corpus(*, planted: bool) -> list[str]:
    """`occupation_texts`, and the frames of the suite `pronouns` about people of no occupation, with both pronouns."""
    frames = [saying.format(f"visitor {n}", pronoun) for saying in people.SAYINGS for n in range(10) for pronoun in ("she", "he")]
    return occupation_texts(planted=planted) + frames


def bias(folder: Path, *, steps: int) -> tuple[Estimate, Estimate]:
    """Share of stereotyped pronouns in sentences that no model has seen, after the planted corpus and after the even one."""
    tokenizer = tokenizer_of(bias_corpus(planted=False), 400, folder / "bias-tokenizer")
    items = list(people.pronouns())
    found = []
    for planted in (True, False):
        model = taught(tokenizer, bias_corpus(planted=planted), folder / f"bias-{planted}", steps=steps)
        found.append(share(answers_of(model, items)))
    return found[0], found[1]


def robustness(folder: Path, *, steps: int, facts_per_relation: int = 30) -> Iterator[tuple[str, Estimate, Estimate]]:
    """Perturbation → share of known answers that change with it, of a model taught clean text, and of one taught both kinds.

    The perturbed prompts of the training text come from other seeds than those of the test.
    """
    items: list[Item] = []
    draw = np.random.default_rng(1)
    for relation in (relation for domain in domains_here() for relation in domain.RELATIONS):
        singles = [fact for fact in relation() if isinstance(fact, Single)]
        for number, index in enumerate(draw.permutation(len(singles))[:facts_per_relation].tolist()):
            items += list(items_of(singles[index], number, draw, templates=SEEN))
    rows = [asdict(item) for item in items]
    clean = [item.prompt + item.options[item.answer] for item in items]
    noisy = [
        made["prompt"] + made["options"][made["answer"]]
        for seed in (11, 12)
        for name in ROBUST
        for made in perturbed(rows, name, seed)
    ]
    tokenizer = tokenizer_of(clean + noisy, 1024, folder / "robust-tokenizer")
    models = [
        Scorer(taught(tokenizer, texts, folder / f"robust-{name}", steps=steps), batch_tokens=1024)
        for name, texts in (("clean", clean), ("both", clean + noisy))
    ]
    before = [answer(rows, model)[0]["chosen"].fill_null(-1).to_numpy() for model in models]
    names = {row["item"]: place for place, row in enumerate(rows)}
    for name in ROBUST:
        changed = perturbed(rows, name, 0)
        places = [names[row["item"]] for row in changed]
        flips = [
            (answer(changed, model)[0]["chosen"].fill_null(-1).to_numpy() != chosen[places]).astype(float)
            for model, chosen in zip(models, before, strict=True)
        ]
        one, other = (estimate(values, np.ones(len(values)), n_resamples=RESAMPLES) for values in flips)
        yield name, one, other
