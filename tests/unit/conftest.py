"""Its being here puts this folder on the path, so that tests of several subjects share the helpers that lie in it."""
