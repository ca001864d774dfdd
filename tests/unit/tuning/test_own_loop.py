"""Ask and tell, by workers that share a study."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline_lib.errors import ConfigError, RefusedError
from pipeline_lib.tuning import Range, ask, open_search, tell

SPACE = {"rate": Range(1e-4, 1e-1), "width": [64, 96, 128]}


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_two_workers_on_one_study_lose_and_double_nothing(tmp_path, storage):
    open_search(tmp_path, "shared", SPACE, storage=storage)

    def work(worker):
        search, numbers = open_search(tmp_path, "shared", SPACE, storage=storage), []
        for _ in range(8):
            asked = ask(search)
            tell(search, asked, None if asked.number == 3 else math.log(asked.values["rate"] / 1e-2) ** 2)
            numbers.append(asked.number)
        return numbers

    with ThreadPoolExecutor(2) as pool:
        numbers = sorted(number for told in pool.map(work, range(2)) for number in told)
    assert numbers == list(range(16))
    entries = open_search(tmp_path, "shared", SPACE, storage=storage).entries()
    assert [one["result"]["state"] for one in entries].count("complete") == 15
    assert entries[3]["result"]["state"] == "failed"
    assert len({one["point"]["rate"] for one in entries}) == 16


@pytest.mark.parametrize("space", [{}, {"rate": Range(1.0, 1.0)}, {"rate": Range(0.0, 1.0)}, {"width": [64]}])
def test_what_cannot_be_searched_is_refused(tmp_path, space):
    with pytest.raises(ConfigError):
        open_search(tmp_path, "empty", space)


@pytest.mark.parametrize("option", [{"sampler": "annealing"}, {"storage": "memory"}])
def test_an_unknown_sampler_or_storage_is_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=r"is no (sampler|storage)") as refused:
        open_search(tmp_path, "one", {"rate": Range(0.1, 1.0)}, **option)
    assert "journal" in refused.value.fix or "quick_gp" in refused.value.fix


def test_another_space_under_the_same_name_is_refused(tmp_path):
    open_search(tmp_path, "one", SPACE)
    with pytest.raises(RefusedError, match="another space"):
        open_search(tmp_path, "one", {**SPACE, "width": [64, 96]})
