"""What is on disk and who owns it: files, locks, process identity."""
