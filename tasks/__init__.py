"""One Prefect task a stage: thin doors to `pipeline_lib`."""
