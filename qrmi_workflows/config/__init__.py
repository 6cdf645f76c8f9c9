"""QPU definitions, the site policy and environment variables."""
