"""A personal Slurm cluster with emulated QPUs on one machine: a site in miniature."""

from qrmi_workflows.sandbox.cluster import DaemonStatus, Sandbox, SandboxStatus

__all__ = ["DaemonStatus", "Sandbox", "SandboxStatus"]
