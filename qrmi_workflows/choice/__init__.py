"""Choose QPUs for requests that leave a choice: by name, pattern, and what the QPU must be."""
