"""lm-eval on the same suites: log-probabilities of every option, and how long that takes. Runs in the peers' Python.

Usage: validation_peer.py MODEL SUITES ANSWERS.json THREADS — MODEL is a folder with a tokenizer.json, SUITES one with a JSONL
file a suite (item, prompt, options, answer). ANSWERS gets {suite: {item: [log-probability of each option]}}. The last line of
output is {"seconds": of the fastest batch size, from items to log-probabilities, "batch_size": which, "version": …}.

A text is scored after the end-of-text token, as documents stand in training: the tokenizer is told to put it before each text.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
BATCH_SIZES = (16, 64)


class Timed(HFLM):
    """Adds up the seconds spent between a request and its answer."""

    seconds = 0.0

    def loglikelihood(self, requests, disable_tqdm=False):
        begin = time.perf_counter()
        found = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds += time.perf_counter() - begin
        return found


def tasks_of(suites: Path) -> list[str]:
    """Write a task for each suite; their names."""
    names = []
    for file in sorted(suites.glob("*.jsonl")):
        task = {
            "task": file.stem, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "options",
            "doc_to_target": "answer", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
        }  # fmt: skip
        (suites / f"{file.stem}.yaml").write_text(yaml.safe_dump(task))
        names.append(file.stem)
    return names


def main() -> None:
    """Score with each batch size; the answers are those of the last one."""
    folder, suites, target = (Path(text) for text in sys.argv[1:4])
    torch.set_num_threads(int(sys.argv[4]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=END, eos_token=END, pad_token=PAD
    )
    end = tokenizer.convert_tokens_to_ids(END)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    names, best = tasks_of(suites), (float("inf"), 0)
    for size in BATCH_SIZES:
        scorer = Timed(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", batch_size=size, add_bos_token=True)
        manager = TaskManager(include_path=str(suites), include_defaults=False)
        found = simple_evaluate(
            scorer, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0, cache_requests=False
        )
        best = min(best, (scorer.seconds, size))
    answers = {
        name: {sample["doc"]["item"]: [float(option[0]) for option in sample["filtered_resps"]] for sample in samples}
        for name, samples in found["samples"].items()
    }
    target.write_text(json.dumps(answers), "utf-8")
    print(json.dumps({"seconds": best[0], "batch_size": best[1], "version": version("lm_eval")}))


if __name__ == "__main__":
    main()
