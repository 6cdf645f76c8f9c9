"""State on disk and the processes that own it: files, locks, process identity, signals."""
