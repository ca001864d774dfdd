"""The reference page and the schema say what the models say."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline_lib.config.environment import ENVIRONMENT
from pipeline_lib.config.load import load_config
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.reference import REFRESH, reference_markdown
from pipeline_lib.config.walk import fields, section_of

ROOT = Path(__file__).parents[3]


def test_committed_page_is_the_generated_one() -> None:
    page = ROOT / "deployments" / "configuration.md"
    assert page.read_text("utf-8") == reference_markdown(), f"the models changed; run: {REFRESH}"


def test_every_field_is_described() -> None:
    leaves = list(fields(PipelineConfig))
    assert len(leaves) > 80
    assert [leaf.name for leaf in leaves if not leaf.info.description] == []
    sections = [section_of(info.annotation) for info in PipelineConfig.model_fields.values()]
    assert [section for section in sections if section and not section.__doc__] == []


def test_every_variable_of_the_environment_that_we_read_is_in_the_table() -> None:
    import re

    read = set()
    for folder in ("pipeline_lib", "flows", "tasks"):
        for file in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"[\"'](MILLRACE_[A-Z_]+)[\"']", file.read_text("utf-8")))  # in constants, too
    own = {"MILLRACE_FAULT", "MILLRACE_EMBEDDED"}  # a hook of tests, and what the program tells its children
    assert read - own == {variable.name for variable in ENVIRONMENT if variable.name.startswith("MILLRACE_")}


def test_schema_accepts_what_the_models_write_and_names_units() -> None:
    schema = PipelineConfig.model_json_schema()
    hours = schema["$defs"]["ResourcesConfig"]["properties"]["max_hours"]
    assert (hours["unit"], hours["default"], hours["exclusiveMinimum"]) == ("hours", 12.0, 0)
    assert schema["$defs"]["PlanConfig"]["properties"]["priority"]["enum"] == ["speed", "balanced", "quality"]
    assert schema["additionalProperties"] is False
    written = json.loads(load_config(None).model_dump_json())
    assert set(written) == set(schema["properties"])
    assert PipelineConfig.model_validate_json(json.dumps(written), strict=True) == PipelineConfig()
