"""One call from data to a model.

    python deployments/examples/finetuner.py [FOLDER WITH TEXT]

Without a folder it learns from the text that is on this machine. `train()` may be called from a notebook as well.
"""

import sys
from typing import Any

from flows.api import FineTuner


def main(data_path: str = "", workspace: str = "workspace", **settings: Any) -> dict[str, Any]:
    """Train, then say what there is to learn from it."""
    tuner = FineTuner(data_path, model="auto", preset="highspeed", workspace=workspace, settings=settings)
    trained = tuner.train()
    print(f"{trained['state']}: dev loss {trained['dev_loss']}, model in {trained['model_path']}")
    findings = tuner.analyze()
    for finding in findings["findings"]:
        print(f"{finding['level']}: {finding['says']}")
    print(f"report: {trained.report}")
    return {"trained": trained, "findings": findings, "tuner": tuner}


if __name__ == "__main__":
    main(*sys.argv[1:2])
