"""Earth grounding: statements about the world, made from reference tables that come inside packages."""

from pipeline_lib.validation.earth import environmental, geographic, scientific, temporal

DOMAINS = (geographic, environmental, temporal, scientific)
