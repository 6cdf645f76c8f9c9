"""The write-ahead journal: every task of a step, recorded before it is submitted."""
