"""What past runs taught."""
