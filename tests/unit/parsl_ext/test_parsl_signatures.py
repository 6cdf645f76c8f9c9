"""The parts of Parsl that `parsl_ext` overrides, or uses beyond Parsl's documented API.

If a test fails after an update of Parsl: read the new code of that part, correct what depends on it
in `parsl_ext`, and then the expectation here, the versions in the comments, and the upper bound of
`parsl` in pyproject.toml.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from parsl import python_app
from parsl.dataflow.memoization import BasicMemoizer, id_for_memo
from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor
from parsl.executors.errors import InvalidResourceSpecification
from parsl.executors.execute_task import execute_task
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.error_handlers import simple_error_handler, windowed_error_handler
from parsl.jobs.states import JobStatus
from parsl.launchers.base import Launcher
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException
from parsl.serialize import pack_apply_message
from parsl.serialize.errors import DeserializationError, SerializationError

from parsl_ext import LeaseLauncher, QPUExecutor, QPUMemoizer, QPUProvider

ROOT = Path(__file__).parents[3]
OVERRIDES = (
    (QPUExecutor, HighThroughputExecutor),
    (QPUProvider, ClusterProvider),
    (LeaseLauncher, Launcher),
    (QPUMemoizer, BasicMemoizer),
)

SIGNATURES: dict[Callable[..., Any], str] = {
    # Overridden by QPUExecutor
    HighThroughputExecutor.__init__: (
        "(self, label='HighThroughputExecutor', provider=None, launch_cmd=None, "
        "interchange_launch_cmd=None, address=None, loopback_address='127.0.0.1', "
        "worker_port=None, worker_port_range=(54000, 55000), "
        "interchange_port_range=(55000, 56000), storage_access=None, working_dir=None, "
        "worker_debug=False, cores_per_worker=1.0, mem_per_worker=None, "
        "max_workers_per_node=None, cpu_affinity='none', available_accelerators=(), "
        "prefetch_capacity=0, heartbeat_threshold=120, heartbeat_period=30, drain_period=None, "
        "poll_period=10, address_probe_timeout=None, worker_logdir_root=None, "
        "manager_selector=RandomManagerSelector, block_error_handler=True, encrypted=True, "
        "remote_monitoring_radio=None)"
    ),
    HighThroughputExecutor.start: "(self)",
    HighThroughputExecutor.shutdown: "(self, timeout=10.0)",
    HighThroughputExecutor.validate_resource_spec: "(self, resource_specification)",
    HighThroughputExecutor.submit: "(self, func, resource_specification, *args, **kwargs)",
    HighThroughputExecutor.submit_payload: "(self, context, buffer)",
    HighThroughputExecutor.outstanding: "(self)",
    HighThroughputExecutor.poll_facade: "(self)",
    HighThroughputExecutor.scale_in: "(self, blocks, max_idletime=None)",
    HighThroughputExecutor._get_launch_command: "(self, block_id)",
    HighThroughputExecutor._hold_block: "(self, block_id)",
    HighThroughputExecutor._start_local_interchange_process: "(self)",
    HighThroughputExecutor._result_queue_worker: "(self)",
    ParslExecutor.monitor_resources: "(self)",
    # Overridden by QPUProvider
    ClusterProvider.__init__: (
        "(self, label, nodes_per_block, init_blocks, min_blocks, max_blocks, parallelism, "
        "walltime, launcher, cmd_timeout=10)"
    ),
    ClusterProvider._status: "(self)",
    ClusterProvider.status: "(self, job_ids)",
    ExecutionProvider.submit: "(self, command, tasks_per_node, job_name='parsl.auto')",
    ExecutionProvider.cancel: "(self, job_ids)",
    # Overridden by LeaseLauncher
    Launcher.__init__: "(self, debug=True)",
    Launcher.__call__: "(self, command, tasks_per_node, nodes_per_block, script_dir='')",
    # Overridden by QPUMemoizer
    BasicMemoizer.check_memo: "(self, task)",
    # Called, registered with, or raised
    HighThroughputExecutor.connected_managers: "(self)",
    BlockProviderExecutor._filter_scale_in_ids: "(self, to_kill, killed)",
    BasicMemoizer.__init__: (
        "(self, *, checkpoint_files=None, checkpoint_period=None, checkpoint_mode=None, "
        "memoize=True)"
    ),
    DeserializationError.__init__: "(self, reason)",
    InvalidResourceSpecification.__init__: "(self, invalid_keys, message='')",
    JobStatus.__init__: (
        "(self, state, message=None, exit_code=None, stdout_path=None, stderr_path=None)"
    ),
    SerializationError.__init__: "(self, fname)",
    SubmitException.__init__: ("(self, job_name, message, stdout=None, stderr=None, retcode=None)"),
    execute_task: "(bufs)",
    id_for_memo: "(obj, output_ref=False)",
    pack_apply_message: "(func, args, kwargs, buffer_threshold=128000000)",
    python_app: (
        "(function=None, data_flow_kernel=None, cache=False, executors='all', "
        "ignore_for_cache=None)"
    ),
    simple_error_handler: "(executor, status, threshold=3)",
    windowed_error_handler: "(executor, status, threshold=3)",
}


def signature(function: Callable[..., Any]) -> str:
    """Return a function's signature without annotations, whose text depends on Python's version."""
    shown = inspect.signature(function)
    parameters = [each.replace(annotation=each.empty) for each in shown.parameters.values()]
    text = str(shown.replace(parameters=parameters, return_annotation=shown.empty))
    return re.sub(r"<[\w.]*?(\w+) object at 0x[0-9a-f]+>", r"\1", text)


def overrides() -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return each of our methods that overrides one of Parsl's, with the method it overrides."""
    return [
        (method, getattr(theirs, name))
        for ours, theirs in OVERRIDES
        for name, method in vars(ours).items()
        if inspect.isfunction(method) and hasattr(theirs, name)
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    SIGNATURES.items(),
    ids=[function.__qualname__ for function in SIGNATURES],
)
def test_signatures_of_parsl_have_not_changed(function: Callable[..., Any], expected: str) -> None:
    assert signature(function) == expected


def test_every_override_is_listed() -> None:
    """This also finds a method that overrides one of Parsl's by accident."""
    assert {theirs.__qualname__ for _, theirs in overrides()} <= {
        function.__qualname__ for function in SIGNATURES
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [each for each in overrides() if each[0].__name__ != "__init__"],
    ids=lambda method: method.__qualname__,
)
def test_overrides_take_the_same_parameters(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


@pytest.mark.parametrize(
    "option",
    [
        "--block_id={{block_id}} ",
        "--cert_dir {cert_dir} ",
        "--drain_period={drain_period} ",
        "--logdir={logdir} ",
    ],
)
def test_the_launch_command_has_the_options_that_are_rewritten(option: str) -> None:
    """In `QPUExecutor._get_launch_command` and in `LeaseLauncher`."""
    assert option in DEFAULT_LAUNCH_CMD


def test_parsl_has_the_private_attributes_that_are_used() -> None:
    executor = HighThroughputExecutor(provider=LocalProvider())

    names = ("_tasks", "_status", "blocks_to_job_id", "job_ids_to_block", "cert_dir")
    assert {name: vars(executor)[name] for name in names} == {
        **{name: {} for name in names},
        "cert_dir": None,
    }
    assert executor.tasks is executor._tasks
    assert executor.launch_cmd == DEFAULT_LAUNCH_CMD
    assert executor.worker_logdir == "./HighThroughputExecutor"


def test_only_releases_of_the_month_that_was_read_are_allowed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = map(Requirement, extras["optional-dependencies"]["parsl"])
    year, month, _ = map(int, version("parsl").split("."))
    next_month = f"{year + month // 12}.{month % 12 + 1}.1"

    assert requirement.specifier.contains(version("parsl"))
    assert not requirement.specifier.contains(next_month)


def test_comments_name_the_version_that_is_tested() -> None:
    text = "".join(path.read_text() for path in (ROOT / "parsl_ext").rglob("*.py"))

    assert set(re.findall(r"\b20\d\d\.\d+\.\d+\b", text)) == {version("parsl")}
