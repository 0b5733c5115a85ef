"""Command line, processes and schedulers: the top layer."""
