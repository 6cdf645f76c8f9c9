"""Snakemake's official test harness for executor plugins, on a real Slurm."""

from __future__ import annotations

import pytest
from snakemake.common.tests import TestWorkflowsLocalStorageBase
from snakemake.settings import types as settings

from snakemake_executor_plugin_slurm_qpu import ExecutorSettings

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.engines,
    pytest.mark.timeout(400),
    pytest.mark.slow,
    pytest.mark.usefixtures("in_sandbox"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp"),  # Snakemake's own
]


class TestOtherRules(TestWorkflowsLocalStorageBase):
    """No rule asks for a QPU, so all jobs run as under the stock executor."""

    __test__ = True

    def get_executor(self) -> str:
        return "slurm-qpu"

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(status_command="squeue", mark_all=True)


class TestRulesWithAQPU(TestOtherRules):
    """Every rule asks for a QPU, and a group shares one lease."""

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(status_command="squeue")

    def get_resource_settings(self) -> settings.ResourceSettings:
        return settings.ResourceSettings(default_resources={"qpu": 1, "qpu_name": "ibm_fez"})


class TestRulesWithAQPUThroughSnakemake(TestRulesWithAQPU):
    """Every rule asks for a QPU, and every job runs a Snakemake."""

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(status_command="squeue", nested=True)
