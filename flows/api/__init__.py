"""The pipeline as a Python API, for scripts and notebooks.

```python
store = MemoryStore(Config(storage_path="memory"))
optimizer = LLMTrainingOptimizer(memory_store=store, model_type="transformer", optimization_strategy="balanced")
data = await optimizer.prepare_training_data(data_sources=["texts/"], target_size=10_000)
```
Every verb is a run of the command line in a process of its own (`jobs.py`): the same stages, artifacts, MLflow runs and reports,
found by `millrace runs`. What one verb made, the next one reuses.
"""

from flows.api.event_loop import wait_for
from flows.api.finetuner import FineTuner
from flows.api.optimizer import LLMTrainingOptimizer
from flows.api.results import Monitored, Optimized, PreparedData, Training, Validated
from pipeline_lib.memory.store import Config, MemoryStore

__all__ = [
    "Config",
    "FineTuner",
    "LLMTrainingOptimizer",
    "MemoryStore",
    "Monitored",
    "Optimized",
    "PreparedData",
    "Training",
    "Validated",
    "wait_for",
]
