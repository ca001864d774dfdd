"""The model as others get it: what a training publishes, and what `millrace export` writes, each compared with the live model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline_lib.config.model import LoraConfig
from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.pretrained import MAKING, quiet, read_model
from pipeline_lib.training.checkpoints import Checkpoint
from pipeline_lib.training.model import adapt, export_model
from pipeline_lib.training.saving import load_weights, read_part
from pipeline_lib.workspace.files import link_or_copy, read_json

EXPORT_TOLERANCE = 1e-5  # of the largest logit, exported against trained
MERGE_TOLERANCE = 1e-3  # likewise, adapters folded in against beside: another order of sums, TF32 on a GPU
PROMPTS = ("The", "Once upon a time", "2 + 2 =", "def main():", "Die Mühle am Bach")  # what a trained model is asked, both times
NEW_TOKENS = 24
CHILD_SECONDS = 900


def publish_model(
    net: Any,
    merged: Callable[..., Any],
    tokenizer_files: Sequence[Path],
    inputs: Mapping[str, Tensor],
    *,
    folder: Path,
    adapter: Path,
) -> None:
    """Merge, export, add the tokenizer, load it back as a user would; logits must stay those of the trained model.

    Args:
        net: the trained model, adapters beside its weights where there are any.
        merged: `model.adapt`'s second result.
        tokenizer_files: what goes beside the weights.
        inputs: input_ids and position_ids of one sequence.
        folder: where the model goes.
        adapter: where the adapter goes, as it was trained; nothing is written without one.

    Raises:
        StageFailedError: the merged or the exported model is not the trained one.
    """
    attached = _logits(net, inputs)
    model = merged(adapter)
    trained = _logits(model, inputs)
    if not (difference := _difference(attached, trained)) <= MERGE_TOLERANCE:
        raise StageFailedError(
            f"the model with its adapters merged is not the trained one: logits differ by {difference:.2g} of their size",
            where="stage train", fix="peft cannot merge adapters into this model family; train it without train.lora",
        )  # fmt: skip
    export_model(model, folder)
    for path in tokenizer_files:
        link_or_copy(path, folder / path.name)
    loaded = _logits(read_model(folder).to(net.device), inputs)
    if not (difference := _difference(trained, loaded)) <= EXPORT_TOLERANCE:
        raise StageFailedError(
            f"the exported model is not the trained one: logits differ by {difference:.2g} of their size",
            where="stage train", fix="this model family cannot be saved and loaded by transformers without loss",
        )  # fmt: skip


def live_model(checkpoint: Checkpoint, lora: LoraConfig, special_ids: Mapping[str, int]) -> Any:
    """The trained model from its checkpoint, adapters merged: what every export is measured against.

    Args:
        checkpoint: a verified one.
        lora: as it was trained.
        special_ids: {"eos", "pad", "stop"} token ids; generation ends at eos and stop.

    Raises:
        ConfigError: transformers cannot build the family from its configuration.
        DamagedError: the weights are not what was committed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet()
    with MAKING:
        try:
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
        except (ValueError, KeyError, OSError) as error:
            raise ConfigError(
                f"transformers cannot build this model from its config.json ({error})", where=str(checkpoint.folder),
                fix="a model of an extension is exported by the extension's own code",
            ) from error  # fmt: skip
    net, merged = adapt(model, lora)
    load_weights(net, read_part(checkpoint, "model.safetensors"))
    plain = merged()
    ends = {special_ids[name] for name in ("eos", "stop") if special_ids.get(name) is not None}
    own = plain.generation_config.eos_token_id
    ends |= {own} if isinstance(own, int) else set(own or ())
    plain.generation_config.eos_token_id = sorted(ends)
    plain.generation_config.pad_token_id = special_ids.get("pad")
    return plain.eval()


def write_model(model: Any, tokenizer_files: Sequence[Path], folder: Path) -> None:
    """A folder that `AutoModelForCausalLM` and `AutoTokenizer` load: weights, configurations, tokenizer, chat template."""
    folder.mkdir(parents=True)
    export_model(model, folder)
    for path in tokenizer_files:
        (folder / path.name).write_bytes(path.read_bytes())


def expectation(model: Any, tokenizer_json: Path, folder: Path) -> None:
    """Write what the live model answers: token ids of the prompts, their logits, greedy continuations, tokens that must end it.

    Args:
        model: the live one.
        tokenizer_json: the tokenizer that made the data.
        folder: where `expected.json` and `logits.safetensors` go.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    prompts = {text: ids for text in PROMPTS if (ids := tokenizer.encode(text, add_special_tokens=False).ids)}
    save_file(
        {f"{number}": _prompt_logits(model, ids) for number, ids in enumerate(prompts.values())}, folder / "logits.safetensors"
    )
    greedy = [_greedy(model, ids) for ids in prompts.values()]
    ends = model.generation_config.eos_token_id
    asked = {
        "ids": prompts,
        "greedy": greedy,
        "text": [tokenizer.decode(ids, skip_special_tokens=False) for ids in greedy],
        "stops": [ends] if isinstance(ends, int) else list(ends),
        "new_tokens": NEW_TOKENS,
    }
    (folder / "expected.json").write_text(json.dumps(asked), "utf-8")


def compare_in_fresh_process(folder: Path, expected: Path) -> dict[str, str]:
    """Load a folder as a user would, in a process of its own, and compare it with `expectation`; what was checked, in words.

    Raises:
        StageFailedError: it is not the live model: what differs is named.
    """
    command = [sys.executable, "-m", "pipeline_lib.training.reload", str(folder), str(expected)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=CHILD_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StageFailedError(
            f"the exported model gave no answer in {CHILD_SECONDS:,} s",
            where="export",
            fix="nothing was exported; try a quieter machine",
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason said"])[-1]
        raise StageFailedError(f"the exported model cannot be loaded: {reason}", where="export", fix="nothing was exported")
    seen = read_json(expected / "seen.json")
    if not seen["difference"] <= EXPORT_TOLERANCE:
        seen["wrong"].insert(0, f"logits differ by {seen['difference']:.2g} of the largest")
    if seen["wrong"]:
        raise StageFailedError(
            "the exported model is not the trained one: " + "; ".join(seen["wrong"]), where="export", fix="nothing was exported"
        )
    return {
        "logits": f"of {seen['prompts']} prompts, in a fresh process: differ by {seen['difference']:.2g} of the largest",
        "greedy text": f"{seen['prompts']} continuations of {NEW_TOKENS} tokens, the same",
        "stop tokens": ", ".join(seen["stops"]) + ": generation ends there",
        "chat template": "there" if seen["chat_template"] else "none: the model was not trained on conversations",
    }


def compare_gguf(path: Path, live: Any) -> str:
    """Read a GGUF file with transformers' own reader and compare logits with the live model; what was seen, in words.

    Raises:
        StageFailedError: it is not the live model.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    kind: Any = AutoModelForCausalLM
    with MAKING, contextlib.redirect_stderr(io.StringIO()):  # its reader draws a progress bar whatever it is told
        model = kind.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True).eval()
    ids = list(range(min(64, model.config.vocab_size)))
    difference = _difference(_prompt_logits(live, ids), _prompt_logits(model, ids))
    if not difference <= EXPORT_TOLERANCE:
        raise StageFailedError(
            f"the GGUF file is not the trained model: logits differ by {difference:.2g} of the largest", where="export",
            fix="nothing was exported; --to hf writes the model as it is",
        )  # fmt: skip
    return f"read by transformers: logits differ by {difference:.2g} of the largest"


@torch.no_grad()
def _prompt_logits(model: Any, ids: Sequence[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits
    return logits[0].float().contiguous()


def _greedy(model: Any, ids: Sequence[int]) -> list[int]:
    inputs = torch.tensor([ids])
    made = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=NEW_TOKENS)
    return [int(token) for token in made[0, len(ids) :]]


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        given = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        logits: Tensor = model.eval()(**given, use_cache=False).logits
    return logits.cpu()


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max())
