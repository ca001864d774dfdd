"""What runs, in what order: Prefect flows over the tasks, the command line, servers."""
