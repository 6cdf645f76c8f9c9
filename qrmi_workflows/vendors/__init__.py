"""Vendors: how each reads, checks and encodes payloads, and decodes results.

A vendor is one file (or folder) with a `Vendor`, and one entry point in the group
`qrmi_workflows.vendors` for each of its resource types.
"""
