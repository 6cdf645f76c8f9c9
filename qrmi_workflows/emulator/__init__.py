"""An HTTP server that speaks the vendors' APIs and computes real results.

It is the embedded default: what QRMI talks to where there is no QPU. Only the sandbox, the
command line and tests import it.
"""

from __future__ import annotations

from qrmi_workflows.emulator.client import Control, Emulator, start_emulator

__all__ = ["Control", "Emulator", "start_emulator"]
