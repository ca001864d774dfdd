"""The optimizer as a Python API: data, search, training, a look at it while it goes, validation on your own questions.

    python deployments/examples/optimizer.py

In a notebook, write `await main()` instead of the last line. All verbs are runs: `millrace runs` shows them.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from flows.api import Config, LLMTrainingOptimizer, MemoryStore

QUESTIONS = [
    {"prompt": "The sun rises in the", "options": ["east", "west"], "answer": 0},
    {"prompt": "Water freezes at zero degrees", "options": ["Celsius", "Kelvin"], "answer": 0},
    {"prompt": "A year has twelve", "options": ["months", "weeks"], "answer": 0},
]


async def main(folder: str = "workspace", **settings: Any) -> dict[str, Any]:
    """Everything once; `settings` are further settings of the pipeline by their dotted names."""
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    questions = home / "general.jsonl"
    questions.write_text("\n".join(json.dumps(question) for question in QUESTIONS) + "\n", "utf-8")

    store = MemoryStore(Config(storage_path=home / "past", hot_memory_size=200, warm_memory_size=1000, cold_memory_size=5000))
    optimizer = LLMTrainingOptimizer(
        memory_store=store,
        model_type="transformer",
        optimization_strategy="balanced",
        max_training_resources={"gpu_memory": "16GB", "max_time": "30m", "max_cost": 100.0},
        workspace=home,
        settings=settings,
        goal="a first model of the text on this machine",
    )
    data = await optimizer.prepare_training_data(
        data_sources=["machine"],
        selection_criteria={"quality_threshold": 0.1, "diversity_score": 0.7, "recency_weight": 0.5, "domain_balance": True},
    )
    print(f"{data['total_examples']:,} documents, quality {data['quality_score']:.2f}, diversity {data['diversity_score']:.1f}")
    best = await optimizer.optimize_hyperparameters(
        model_config={
            "model_size": "small",
            "architecture": "transformer",
            "base_learning_rate": 1e-3,
            "batch_size_range": [8, 32],
        },
        optimization_metrics=["validation_loss", "training_speed", "memory_efficiency"],
        max_trials=3,
    )
    print("best:", best["optimal_config"])
    run = await optimizer.train()
    seen = await optimizer.monitor_training(training_id=run.id, metrics=["loss", "resource_usage", "estimated_completion"])
    print(f"{seen['state']}: {seen['progress']:.0%}, over at {seen['estimated_completion'] or 'an unknown time'}")
    trained = await optimizer.wait(run.id)
    test = await optimizer.validate_model(
        model_path=trained.model_path,
        validation_data={"general_knowledge": questions},
        validation_metrics=["accuracy", "reasoning"],
    )
    print(f"overall {test['overall_score']:.2f}, {test['category_scores']}; report: {test.report}")
    past = store.recall({}, goal="a first model", k=3)
    print("remembered:", [near.run_id for near in past])
    return {"data": data, "best": best, "run": run, "seen": seen, "trained": trained, "test": test, "past": past}


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
