"""Vendors: how each one reads, checks and encodes payloads, and decodes results.

A vendor is one file or folder with an object that implements `Vendor`. It registers each of its
resource types by an entry point in the group `qrmi_workflows.vendors`.
"""
