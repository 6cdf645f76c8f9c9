"""The sandbox's rendered files and what it detects on a machine, without running Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qrmi_workflows.config.site import load_site_policy
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
    """Each file matches its reviewed golden copy line by line."""
    assert text.splitlines() == (GOLDEN / name).read_text().splitlines()


def test_slurm_conf_when_the_host_name_is_not_a_loopback_address() -> None:
    """Slurm must listen on all addresses, or the loopback interface could not reach it."""
    lines = render.render_slurm_conf(replace(CLUSTER, address=None)).splitlines()
    assert "SlurmctldHost=login1(127.0.0.1)" in lines
    assert not any(line.startswith("CommunicationParameters") for line in lines)
    assert sum(" NodeAddr=127.0.0.1 " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.1.1", "127.0.1.1"), ("192.0.2.7", None), ("no-such-host.invalid", None)],
)
def test_loopback_address(host: str, address: str | None) -> None:
    """Only a loopback address is returned; a numeric address resolves to itself."""
    assert state.loopback_address(host) == address


def test_the_site_policy_can_be_read_back(tmp_path: Path) -> None:
    """Including names that TOML has to quote."""
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
def test_cgroups_are_disabled_where_slurm_supports_it(version: tuple[int, ...], text: str) -> None:
    """Earlier versions reject the setting; later ones require cgroups without it."""
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
def test_task_prolog_prints_missing_variables(
    tmp_path: Path, environ: dict[str, str], expected: dict[str, str]
) -> None:
    """Run the script as Slurm does, in the environment of a job's task, and parse its output."""
    script = tmp_path / "task_prolog"
    script.write_text(render.render_task_prolog(SITE))
    unset = [] if "PATH" in environ else ["unset PATH;"]
    argv = ["/bin/sh", "-c", f"{' '.join(unset)} . {script}"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    lines = [line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines()]
    assert {name: value for name, value in lines} == expected  # noqa: C416 - reads as a mapping


def test_wrapper_binds_a_command_to_the_sandbox(tmp_path: Path) -> None:
    """It overrides the caller's SLURM_CONF and passes arguments on unchanged."""
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
    """Applying it twice does not add them again."""
    once = render.environment(SITE, {"PATH": "/usr/bin:/bin"})
    assert once["PATH"] == "/home/ada/site/bin:/usr/bin:/bin"
    assert render.environment(SITE, once | {"PATH": f"/opt/bin:{once['PATH']}"})["PATH"] == (
        "/home/ada/site/bin:/opt/bin:/usr/bin:/bin"
    )


def test_each_sandbox_has_its_own_leases() -> None:
    """QPU_STATE keeps a value that the user set, but not one that another sandbox's shell set."""
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
def test_nodes_are_ready_when_all_respond(output: str, ready: bool) -> None:
    """Their states are those that sinfo prints."""
    assert nodes_are_ready(output, 2) is ready


def make_programs(folder: Path, names: tuple[str, ...]) -> Path:
    """Create executables with these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_missing_slurm_is_reported_in_one_message(tmp_path: Path) -> None:
    """It names every missing program and says what to install."""
    folder = make_programs(tmp_path / "bin", ("munged", "slurmctld", "slurmd", "sinfo"))
    with pytest.raises(SandboxError) as caught:
        layout.find_programs({"PATH": str(folder)})
    assert str(caught.value) == (
        "Slurm is not installed: sbatch, scancel, scontrol, squeue, srun not found on PATH. A "
        "sandbox needs Slurm 22.05 or later and MUNGE. Install them with `apt-get install "
        "slurm-wlm munge` (Debian, Ubuntu)."
    )


def test_a_sandboxs_wrappers_are_not_mistaken_for_slurm(tmp_path: Path) -> None:
    """One sandbox may be started from the shell of another."""
    wrappers = make_programs(tmp_path / "wrappers", SLURM)
    (wrappers / layout.WRAPPERS_MARKER).touch()
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
    """It is $QPU_SANDBOX, or under the user's XDG state directory or its default."""
    assert layout.default_directory(environ) == Path(directory).expanduser()


def test_runtime_directory_is_short_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if TMPDIR is long: the path of a Unix socket is limited to 107 bytes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    folder = layout.make_runtime_directory(SITE)
    try:
        assert layout.runtime_directories(SITE) == [folder]
        assert layout.runtime_directories(Layout(tmp_path)) == []
        assert len(str(folder)) < 40
        assert layout.is_private(folder)
        folder.chmod(0o755)
        assert not layout.is_private(folder)
    finally:
        shutil.rmtree(folder)
    assert not layout.is_private(folder)


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    """Reading returns what was written; before that, nothing."""
    place = Layout(tmp_path)
    assert state.read_state(place) is None
    written = state.State(
        nodes=2,
        qpus=("a=b:c",),
        runtime=Path("/run/qpu-x"),
        address="127.0.1.1",
        controller_port=1,
        node_ports=(2, 3),
        database_port=6,
        site_scripts=True,
        daemons={"munged": ProcessRecord(pid=4, created=5.5)},
    )
    state.write_state(place, written)
    assert state.read_state(place) == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": 2}'])
def test_a_damaged_state_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    """The message names the file and says what to do."""
    place = Layout(tmp_path)
    place.state_file.write_text(text)
    with pytest.raises(SandboxError, match=r"sandbox\.json: not a sandbox state file: .* Remove"):
        state.read_state(place)


def test_free_ports_are_free_and_distinct() -> None:
    """They are below the range that Linux uses for outgoing connections."""
    ports = state.find_free_ports(5)
    assert len(set(ports)) == 5
    assert all(20000 <= port < 32000 for port in ports)
    assert state.are_free(ports)


def test_a_process_is_identified_by_its_creation_time_too() -> None:
    """This process is alive; one with its id but another creation time is not."""
    own = psutil.Process().create_time()
    assert ProcessRecord(pid=os.getpid(), created=own).alive
    assert not ProcessRecord(pid=os.getpid(), created=own - 1000).alive
    assert not ProcessRecord(pid=2**22 + 1, created=own).alive
