"""The parts of the stock executor and of Snakemake that the plugin overrides or uses.

Much of it is private. If a test fails after an upgrade, read the new source of the parts that
have changed, correct the plugin and the versions in its comments, and then this file.
Read in snakemake 9.27.1, snakemake-executor-plugin-slurm 2.8.0 and
snakemake-interface-executor-plugins 9.4.0.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.common.tbdstring import TBDString
from snakemake.dag import DAG
from snakemake.jobs import Job
from snakemake.persistence import PersistenceBase
from snakemake.resources import GroupResources
from snakemake.rules import Rule
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.shell import shell
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import AbstractExecutor
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.utils import (
    encode_target_jobs_cli_args,
    format_cli_arg,
)

from snakemake_executor_plugin_slurm_qpu.executor import Executor
from snakemake_executor_plugin_slurm_qpu.nesting import NestingExecutor
from snakemake_executor_plugin_slurm_qpu.qpu_requests import TO_BE_DETERMINED
from snakemake_executor_plugin_slurm_qpu.stage_executor import StageExecutor
from snakemake_executor_plugin_slurm_qpu.status_checks import MarkerExecutor

OURS = (MarkerExecutor, NestingExecutor, StageExecutor, Executor)

OVERRIDDEN = {
    "_report_job_submission_threadsafe": (SlurmExecutor, "(self, job_info)"),
    "_submit_job": (SlurmExecutor, "(self, job)"),
    "__init__": (SlurmExecutor, "(self, workflow, logger)"),
    "__post_init__": (SlurmExecutor, "(self, test_mode=False)"),
    "additional_general_args": (SlurmExecutor, "(self)"),
    "cancel": (RemoteExecutor, "(self)"),
    "cancel_jobs": (SlurmExecutor, "(self, active_jobs)"),
    "check_active_jobs": (SlurmExecutor, "(self, active_jobs)"),
    "format_job_exec": (RealExecutor, "(self, job)"),
    "get_job_args": (RemoteExecutor, "(self, job)"),
    "get_job_exec_suffix": (RealExecutor, "(self, job)"),
    "get_partition_arg": (SlurmExecutor, "(self, job)"),
    "get_snakefile": (RealExecutor, "(self)"),
    "get_status_command": (SlurmExecutor, "(self)"),
    "handle_job_error": (RealExecutor, "(self, job)"),
    "handle_job_success": (RemoteExecutor, "(self, job)"),
    "report_job_error": (AbstractExecutor, "(self, job_info, msg=None, **kwargs)"),
    "report_job_submission": (RemoteExecutor, "(self, job_info, register_job=True)"),
    "report_job_success": (AbstractExecutor, "(self, job_info)"),
    "run_job": (SlurmExecutor, "(self, job)"),
    "run_jobs": (SlurmExecutor, "(self, jobs)"),
    "shutdown": (SlurmExecutor, "(self)"),
    "sleep": (RemoteExecutor, "(self)"),
}
"""Each overridden method, the class whose method it overrides, and that method's parameters."""

CALLED = {
    SlurmExecutor._report_job_error_threadsafe: "(self, job_info, msg)",
    SlurmExecutor.get_account_arg: "(self, job)",
    RemoteExecutor.get_python_executable: "(self)",
    RemoteExecutor._wait_for_jobs: "(self)",
    get_submit_command: "(job, params, settings=None, failed_nodes=None, array_job=False)",
    set_gres_string: "(job)",
    get_job_wildcards: "(job)",
    validate_slurm_extra: "(job)",
    encode_target_jobs_cli_args: "(target_jobs)",
    format_cli_arg: "(flag, value, quote=True, skip=False, base64_encode=False)",
    parse_target_jobs_cli_args: "(target_jobs_args)",
    shell._get_process_prefix: "(shell_exec=None)",
    shell.get_executable: "()",
    Job.prepare: "(self)",
    Job.cleanup: "(self, skip_outputs)",
    GroupResources._is_string_resource: "(name, values)",
    PersistenceBase.external_jobids: "(self, job)",
    DAG.finished: "(self, job)",
    DAG.needrun: "(self, job)",
    DAG.needrun_jobs: "(self, exclude_finished=True)",
    DAG.job_dependencies: "(self, job)",
    DAG.get_job_group: "(self, job)",
}
"""Functions that the plugin calls, or relies on, and their parameters."""

ATTRIBUTES = {
    SlurmExecutor: (
        "_failed_nodes",
        "_job_submission_executor",
        "_submitted_job_clusters",
        "array_jobs",
        "run_uuid",
        "slurm_logdir",
    ),
    RemoteExecutor: ("active_jobs", "wait", "wait_thread"),
    DAG: ("depending",),
    JobScheduler: ("_lock", "_user_kill", "failed", "keepgoing", "running"),
    Job: ("_attempt", "_params", "_non_derived_params"),
    Rule: ("_restart_times",),
}
"""Attributes that the plugin reads, by the class that assigns them."""


def parameters(function: Callable[..., Any]) -> str:
    """Render a function's parameters without annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def overridden(name: str) -> type | None:
    """Return the class whose method of this name the stock executor has."""
    classes = (each for each in SlurmExecutor.__mro__ if each is not object)
    return next((each for each in classes if callable(vars(each).get(name))), None)


def overrides() -> Iterator[str]:
    """Name the methods that our classes override."""
    return (
        name
        for name in dict.fromkeys(name for each in OURS for name in vars(each))
        if overridden(name)
    )


def test_every_overridden_method_is_listed() -> None:
    assert sorted(overrides()) == sorted(OVERRIDDEN)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_has_the_signature_that_was_read(name: str) -> None:
    owner, read = OVERRIDDEN[name]

    assert overridden(name) is owner
    assert parameters(vars(owner)[name]) == read


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_can_be_called_as_the_stock_method(name: str) -> None:
    stock = inspect.signature(getattr(SlurmExecutor, name)).parameters.values()
    for ours in (getattr(each, name) for each in OURS):
        accepted = inspect.signature(ours)
        positional = [p for p in stock if p.kind is p.POSITIONAL_OR_KEYWORD]
        accepted.bind(*positional)
        accepted.bind(None, **{p.name: p for p in positional[1:]})


@pytest.mark.parametrize("function", CALLED, ids=lambda function: function.__qualname__)
def test_a_function_that_is_called_has_the_signature_that_was_read(function: Any) -> None:
    assert parameters(function) == CALLED[function]


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_the_attributes_that_are_read_are_assigned(owner: type) -> None:
    source = inspect.getsource(owner)

    assert [name for name in ATTRIBUTES[owner] if f"self.{name} = " not in source] == []


def test_an_undetermined_value_is_written_as_it_was_read() -> None:
    assert str(TBDString()) == TO_BE_DETERMINED
