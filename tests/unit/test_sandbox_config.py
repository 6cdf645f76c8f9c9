"""The sandbox's files as text, and what it finds on a machine: nothing here runs Slurm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qrmi_workflows.config import load_site_policy
from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import layout, render, state
from qrmi_workflows.sandbox.daemons import nodes_are_ready
from qrmi_workflows.sandbox.layout import Layout
from qrmi_workflows.sandbox.processes import ProcessRecord

GOLDEN = Path(__file__).parent / "golden"
SITE = Layout(Path("/home/ada/site"))
CLUSTER = render.Cluster(
    layout=SITE,
    runtime=Path("/run/qpu-x1y2z3"),
    host="login1",
    address="127.0.1.1",
    user="ada",
    controller_port=20001,
    node_ports=(20002, 20003),
    qpus=("ibm_fez", "FRESNEL"),
)
SLURM = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "scancel",
    "scontrol",
    "sinfo",
    "squeue",
    "srun",
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("slurm.conf", render.render_slurm_conf(CLUSTER)),
        ("gres.conf", render.render_gres_conf(CLUSTER.qpus)),
        ("site.toml", render.render_site_policy({"ibm_fez": 5, "FRESNEL": 1})),
        ("task_prolog", render.render_task_prolog(SITE)),
        ("sbatch", render.render_wrapper(["/usr/bin/sbatch"], {"SLURM_CONF": "/a b/slurm.conf"})),
    ],
)
def test_rendered_files(name: str, text: str) -> None:
    """Every line of what is written, as it was reviewed."""
    assert text.splitlines() == (GOLDEN / name).read_text().splitlines()


def test_slurm_conf_where_the_host_name_is_an_outer_address() -> None:
    """Slurm would listen there alone, and nobody could reach it at the loopback interface."""
    lines = render.render_slurm_conf(replace(CLUSTER, address=None)).splitlines()
    assert "SlurmctldHost=login1(127.0.0.1)" in lines
    assert not any(line.startswith("CommunicationParameters") for line in lines)
    assert sum(" NodeAddr=127.0.0.1 " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.1.1", "127.0.1.1"), ("192.0.2.7", None), ("no-such-host.invalid", None)],
)
def test_loopback_address(host: str, address: str | None) -> None:
    """An address resolves to itself."""
    assert state.loopback_address(host) == address


def test_the_site_policy_can_be_read(tmp_path: Path) -> None:
    """Also for names that TOML has to quote."""
    path = tmp_path / "site.toml"
    path.write_text(render.render_site_policy({"ibm_fez": 5, "a.b-c": 1}))
    qpus = load_site_policy(path).qpus
    assert (qpus["ibm_fez"].gres, qpus["ibm_fez"].licence) == ("qpu:ibm_fez", "qpu_ibm_fez")
    assert {name: policy.lanes for name, policy in qpus.items()} == {"ibm_fez": 5, "a.b-c": 1}


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ((22, 5), ""),
        ((23, 11), ""),
        ((24, 5), "CgroupPlugin=disabled\n"),
        ((25, 5), "CgroupPlugin=disabled\n"),
    ],
)
def test_cgroups_are_disabled_where_slurm_knows_the_word(
    version: tuple[int, ...], text: str
) -> None:
    """Earlier versions refuse it; later ones look for cgroups without it."""
    assert render.render_cgroup_conf(version) == text


PROLOG_BARE = {
    "SLURM_CONF": "/home/ada/site/etc/slurm.conf",
    "QPU_SANDBOX": "/home/ada/site",
    "QPU_CONFIG": "/home/ada/site/emulator/qrmi_config.json",
    "QPU_SITE": "/home/ada/site/site.toml",
    "QPU_STATE": "/home/ada/site/state",
    "PATH": "/home/ada/site/bin:/usr/local/bin:/usr/bin:/bin",
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, PROLOG_BARE),
        ({"PATH": "/opt/bin:/bin"}, PROLOG_BARE | {"PATH": "/home/ada/site/bin:/opt/bin:/bin"}),
        ({"QPU_CONFIG": "/mine"}, {k: v for k, v in PROLOG_BARE.items() if k != "QPU_CONFIG"}),
        ({"no_proxy": "a,b"}, PROLOG_BARE | {"no_proxy": "a,b,127.0.0.1"}),
        (
            PROLOG_BARE,
            {name: PROLOG_BARE[name] for name in ("SLURM_CONF", "QPU_SANDBOX")},
        ),
    ],
)
def test_task_prolog_says_what_a_task_lacks(
    tmp_path: Path, environ: dict[str, str], expected: dict[str, str]
) -> None:
    """Run by a shell in a task's environment: what it prints is what the task gets."""
    script = tmp_path / "task_prolog"
    script.write_text(render.render_task_prolog(SITE))
    unset = [] if "PATH" in environ else ["unset PATH;"]
    argv = ["/bin/sh", "-c", f"{' '.join(unset)} . {script}"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines()]
    assert {name: value for name, value in lines} == expected  # noqa: C416 - reads as a mapping


def test_wrapper_binds_a_command_to_the_sandbox(tmp_path: Path) -> None:
    """Whatever its caller's SLURM_CONF is; arguments arrive as they were given."""
    wrapper = tmp_path / "wrapper"
    argv = ["/bin/sh", "-c", 'echo "$SLURM_CONF" "$@"', "x"]
    wrapper.write_text(render.render_wrapper(argv, {"SLURM_CONF": "/it's/slurm.conf"}))
    wrapper.chmod(0o755)
    for environ in ({}, {"SLURM_CONF": "/etc/slurm/slurm.conf"}):
        done = subprocess.run(
            [wrapper, "a b", "$c"], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == "/it's/slurm.conf a b $c\n"


def test_environment_puts_the_wrappers_first_once() -> None:
    """Applied twice it is the same."""
    once = render.environment(SITE, {"PATH": "/usr/bin:/bin"})
    assert once["PATH"] == "/home/ada/site/bin:/usr/bin:/bin"
    assert render.environment(SITE, once | {"PATH": f"/opt/bin:{once['PATH']}"})["PATH"] == (
        "/home/ada/site/bin:/opt/bin:/usr/bin:/bin"
    )


def test_each_sandbox_has_leases_of_its_own() -> None:
    """But where the user chose a folder, that one stays; another sandbox's is no choice."""
    assert render.environment(SITE, {})["QPU_STATE"] == "/home/ada/site/state"
    assert render.environment(SITE, {"QPU_STATE": "/mine"})["QPU_STATE"] == "/mine"
    other = render.environment(Layout(Path("/home/ada/other")), {})
    assert render.environment(SITE, other)["QPU_STATE"] == "/home/ada/site/state"


@pytest.mark.parametrize(
    ("output", "ready"),
    [
        ("n1|idle\nn2|idle\n", True),
        ("n1|mixed\nn2|drained\n", True),
        ("n1|idle*\nn2|idle\n", False),
        ("n1|idle\nn2|unknown*\n", False),
        ("n1|idle\nn2|down\n", False),
        ("n1|idle\n", False),
        ("", False),
    ],
)
def test_nodes_are_ready_when_all_answer(output: str, ready: bool) -> None:
    """As sinfo shows them."""
    assert nodes_are_ready(output, 2) is ready


def make_programs(folder: Path, names: tuple[str, ...]) -> Path:
    """Make executables of these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_absent_slurm_is_said_in_one_message(tmp_path: Path) -> None:
    """It tells what to install."""
    folder = make_programs(tmp_path / "bin", ("munged", "slurmctld", "slurmd", "sinfo"))
    with pytest.raises(SandboxError) as caught:
        layout.find_programs({"PATH": str(folder)})
    assert str(caught.value) == (
        "Slurm is not installed here: no sbatch, scancel, scontrol, squeue, srun on PATH. A "
        "sandbox needs Slurm 22.05 or later and MUNGE: `apt-get install slurm-wlm munge` "
        "(Debian, Ubuntu)."
    )


def test_the_wrappers_of_a_sandbox_are_not_taken_for_slurm(tmp_path: Path) -> None:
    """One sandbox may be started in the shell of another."""
    wrappers = make_programs(tmp_path / "wrappers", SLURM)
    (wrappers / layout.WRAPPERS_MARK).touch()
    real = make_programs(tmp_path / "real", SLURM)
    programs = layout.find_programs({"PATH": f"{wrappers}:{real}"})
    assert programs.slurmctld == real / "slurmctld"
    assert programs.clients["sbatch"] == real / "sbatch"


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"QPU_SANDBOX": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
        ({"XDG_STATE_HOME": "/b"}, "/b/qrmi-workflows/sandbox"),
        ({}, "~/.local/state/qrmi-workflows/sandbox"),
    ],
)
def test_default_directory(environ: dict[str, str], directory: str) -> None:
    """$QPU_SANDBOX, the user's folder for state, or its default."""
    assert layout.default_directory(environ) == Path(directory).expanduser()


def test_runtime_directory_is_short_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where TMPDIR is long: Unix sockets end at 107 bytes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    folder = layout.make_runtime_directory()
    try:
        assert len(str(folder)) < 40
        assert layout.is_private(folder)
        folder.chmod(0o755)
        assert not layout.is_private(folder)
    finally:
        folder.rmdir()
    assert not layout.is_private(folder)


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Nothing is lost."""
    place = Layout(tmp_path)
    assert state.read_state(place) is None
    written = state.State(
        nodes=2,
        qpus=("a=b:c",),
        runtime=Path("/run/qpu-x"),
        address="127.0.1.1",
        controller_port=1,
        node_ports=(2, 3),
        daemons={"munged": ProcessRecord(pid=4, created=5.5)},
    )
    state.write_state(place, written)
    assert state.read_state(place) == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": 2}'])
def test_a_damaged_state_is_no_traceback(tmp_path: Path, text: str) -> None:
    """The file is named, and what to do."""
    place = Layout(tmp_path)
    place.state_file.write_text(text)
    with pytest.raises(SandboxError, match=r"sandbox\.json: not a sandbox's state: .* Remove"):
        state.read_state(place)


def test_free_ports_are_free_and_differ() -> None:
    """They are below those that Linux gives to outgoing connections."""
    ports = state.free_ports(5)
    assert len(set(ports)) == 5
    assert all(20000 <= port < 32000 for port in ports)
    assert state.are_free(ports)


def test_a_process_is_known_by_its_creation_too() -> None:
    """This one is alive; one with its id but of another time is not."""
    own = psutil.Process().create_time()
    assert ProcessRecord(pid=os.getpid(), created=own).alive
    assert not ProcessRecord(pid=os.getpid(), created=own - 1000).alive
    assert not ProcessRecord(pid=2**22 + 1, created=own).alive
