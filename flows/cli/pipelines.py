"""Where the pipeline files that come with Millrace lie."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.errors import NotFoundError

PIPELINES = Path(__file__).parents[2] / "deployments" / "pipelines"


def default_pipeline() -> Path:
    """The quickstart.

    Raises:
        NotFoundError: this installation has no `deployments` folder.
    """
    path = PIPELINES / "quickstart.yaml"
    if not path.is_file():
        raise NotFoundError("this installation has no quickstart", where=str(path), fix="name a pipeline: --config FILE")
    return path
