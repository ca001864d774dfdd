"""What no training here could do is refused before the first stage, with the nearest thing that would do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.errors import ConfigError
from pipeline_lib.possible import check_possible
from pipeline_lib.run import run_plain
from pipeline_lib.training import libraries
from pipeline_lib.workspace.files import write_json
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import NAMES, small_config


@pytest.mark.parametrize(
    ("sections", "where", "fix"),
    [
        ({"train": {"optimizer": "lamb"}}, "train.optimizer", "set train.optimizer to adamw"),
        ({"model": {"family": "lama"}}, "model.family", "did you mean llama"),
        ({"train": {"lora": {"rank": 2, "targets": ["quary_proj"]}}}, "train.lora.targets", "did you mean q_proj"),
        ({"model": {"family": "phi3"}, "train": {"lora": {"rank": 2}}}, "train.lora.targets", "qkv_proj"),
        ({"train": {"attention": "flex_attention"}}, "train.attention", "auto or sdpa"),
        ({"train": {"compile": True}}, "train.compile", "install one"),
    ],
)
def test_it_is_refused_before_anything_is_done(
    sections: dict[str, Any], where: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(libraries.EXTRAS, "lamb", ("a_module_that_is_not_here", "optimizers"))
    monkeypatch.setenv("PATH", "")  # no compiler
    config = small_config(**sections)
    workspace = Workspace.open(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        run_plain(workspace, config)
    assert refusal.value.where == where
    assert fix in (refusal.value.fix or "")
    assert list(workspace.runs_folder.glob("*.json")) == []
    check_possible(config, NAMES[: NAMES.index("calibrate")])  # to make the data for another machine is possible


def test_targets_are_those_of_the_model_that_is_gone_on_from(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "phi"})
    (tmp_path / "model.safetensors").touch()
    config = small_config(model={"start": str(tmp_path)}, train={"lora": {"rank": 2, "targets": ["dense", "o_proj"]}})
    with pytest.raises(ConfigError, match="no module of a phi is called o_proj"):
        check_possible(config, NAMES)
    fits = config.train.lora.model_copy(update={"targets": ["dense"]})
    check_possible(config.model_copy(update={"train": config.train.model_copy(update={"lora": fits})}), NAMES)


def test_a_start_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config = small_config(model={"start": str(tmp_path)})
    with pytest.raises(ConfigError, match="safetensors") as refusal:
        check_possible(config, NAMES)
    assert "save_pretrained" in (refusal.value.fix or "")
    write_json(tmp_path / "config.json", {"model_type": "llama", "max_position_embeddings": 32})
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="knows 32 positions") as refusal:
        check_possible(config, NAMES)
    assert refusal.value.fix == "set pack.sequence_length to at most 32"


def test_it_costs_no_import_of_torch() -> None:
    look = (
        "import sys; from pipeline_lib.possible import check_possible; from tests.pipeline_toys import NAMES, small_config; "
        "check_possible(small_config(train={'lora': {'rank': 2}}), NAMES); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", look], cwd=Path(__file__).parents[2], check=False).returncode == 0
