"""The command line, one file a noun. Nothing heavy is imported before a command runs, so that `millrace --help` is quick."""
