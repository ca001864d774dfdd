"""MLflow, and nothing but MLflow."""
