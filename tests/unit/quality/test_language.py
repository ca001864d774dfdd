from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from score_toy import signals

from pipeline_lib.errors import DamagedError
from pipeline_lib.quality import language
from pipeline_lib.quality.language import ENOUGH, SURE, identify, installed_model, model_digest, model_file, read_model
from pipeline_lib.tables.buffers import text_buffers

needs_model = pytest.mark.skipif(model_file() is None, reason="needs the extra `language`")
# What fastText 0.9.2 itself says about these texts with lid.176.ftz.
KNOWN = [
    ("All human beings are born free and equal in dignity and rights.", "en", 0.982617),
    ("Tous les êtres humains naissent libres et égaux en dignité et en droits.", "fr", 0.983806),
    ("Все люди рождаются свободными и равными в своем достоинстве и правах.", "ru", 0.992991),
    ("人人生而自由，在尊严和权利上一律平等。", "zh", 0.689488),
    ("すべての人間は、生まれながらにして自由である。", "ja", 1.000000),
    ("يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.", "ar", 0.994001),
    ("सभी मनुष्यों को गौरव और अधिकारों के मामले में", "hi", 0.983854),
    ("'A YO", "en", 0.124504),
    ("", "en", 0.124504),
]


@needs_model
def test_labels_and_probabilities_are_fasttexts() -> None:
    texts = pa.array([text for text, _, _ in KNOWN], pa.large_string())
    labels, confidence = identify(*text_buffers(texts), installed_model())
    assert labels.to_pylist() == [label for _, label, _ in KNOWN]
    assert confidence.tolist() == pytest.approx([probability for _, _, probability in KNOWN], abs=1e-6)


ENGLISH, GERMAN = (
    "The miller grinds the corn of the whole village between two heavy stones before the sun has risen. ",
    "Der Müller mahlt das Korn des ganzen Dorfes zwischen zwei schweren Steinen, noch ehe die Sonne aufgeht. ",
)


@needs_model
def test_a_sure_beginning_decides_and_an_unsure_one_is_read_on() -> None:
    found = signals(ENGLISH * 2 + GERMAN * 20, "0 1 2 3 4 5 " * 16 + GERMAN * 20, "0 1 2 3 4 5 " * 200 + GERMAN * 20)
    assert found.column("language").to_pylist() == ["en", "de", signals("0 1 2 3 4 5 " * 200).column("language")[0].as_py()]


@needs_model
def test_no_character_is_cut_where_reading_stops() -> None:
    head = (ENGLISH * 2)[: ENOUGH - 1]  # the limit lies inside the next character
    found = signals(head, head + "é and more").column("language_confidence").to_pylist()
    assert found[0] >= SURE
    assert found[1] == found[0]


def test_without_weights_the_language_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "model_file", lambda: None)
    assert model_digest() == "none"
    labels, confidence = identify(*text_buffers(pa.array(["text"], pa.large_string())), None)
    assert labels.to_pylist() == [""]
    assert np.array_equal(confidence, [0.0])


@pytest.mark.parametrize("data", [b"", b"no model at all, but long enough for a header " * 4])
def test_another_file_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "lid.ftz").write_bytes(data)
    with pytest.raises(DamagedError, match="no quantised fastText model"):
        read_model(tmp_path / "lid.ftz")
