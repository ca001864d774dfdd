"""One pydantic model a section; YAML in, JSON Schema out. `PipelineConfig` is the whole."""
