"""Running tasks: one at a time, or as many as the QPU has lanes."""
