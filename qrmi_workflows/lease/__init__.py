"""The lease on a QPU: open it, hold it, release it on every path."""
