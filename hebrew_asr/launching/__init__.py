"""Starting ranks, and being one of those that were started."""
