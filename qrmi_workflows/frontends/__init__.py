"""Front ends: vendors' programming interfaces over a lease, each registered by its vendor."""
