"""Vendors' programming interfaces over a lease; each is registered by its vendor."""
