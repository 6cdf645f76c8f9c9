"""The program of a step: it adopts the lease of its job."""

import sys

from qrmi_workflows import open_lease

payload, output = sys.argv[1:]
with open_lease() as lease:
    lease.run(payload).save(output)
