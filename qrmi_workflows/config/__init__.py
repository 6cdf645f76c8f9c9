"""QPU definitions, the site policy, and what a process's environment says."""
