"""An HTTP server that speaks the vendors' APIs and computes real results.

QRMI talks to it as it would to a vendor, so workflows run without a QPU. Only the sandbox, the
command line and tests import this package.
"""

from __future__ import annotations

from qrmi_workflows.emulator.client import Control, Emulator, start_emulator

__all__ = ["Control", "Emulator", "start_emulator"]
