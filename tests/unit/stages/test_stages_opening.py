"""Opening a stage: what is submitted, and what is refused before anything is."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from qrmi_workflows.cli import main
from qrmi_workflows.errors import LeaseError, RequestError, SchedulerError, UnknownQPUError
from qrmi_workflows.lease.stage import Stage, StageState, find_stage, list_stages, update_stage
from qrmi_workflows.lease.stage_folder import StageFolder
from qrmi_workflows.stages.opening import open_stage, wait_until_ready
from qrmi_workflows.state.locks import is_locked
from qrmi_workflows.tasks.lanes import LaneSemaphore

RUNNING = ("1", "RUNNING", "(null)"), ("2", "PENDING", "afterany:1(unfulfilled)")


def test_the_keepers_job_requests_the_qpu_and_the_guard_follows_it(site):
    stage = open_stage("vqe", qpu="ibm_fez", time="8:00:00", account="a", options=["--qos=high"])

    assert (stage.keeper_job, stage.guard_job) == ("1", "2")
    keeper, guard = site.scripts
    directives = [line for line in keeper.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "#SBATCH --gres=qpu:ibm_fez:1",
        "#SBATCH --licenses=qpu_ibm_fez:1",
        "#SBATCH --ntasks=1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=1000M",
        "#SBATCH --time=8:00:00",
        "#SBATCH --account=a",
        "#SBATCH --requeue",
        "#SBATCH --qos=high",
        "#SBATCH --job-name=qpu-keeper-vqe",
        f"#SBATCH --output={stage.folder.log}",
        f"#SBATCH --error={stage.folder.log}",
        "#SBATCH --open-mode=append",
        f"#SBATCH --comment=qpu_keeper=vqe:{stage.id}",
    ]
    assert guard.splitlines()[:3] == [
        "#!/bin/bash",
        "#SBATCH --dependency=afterany:1",
        "#SBATCH --kill-on-invalid-dep=no",
    ]
    assert "--gres" not in guard
    assert "#SBATCH --time=10\n" in guard


def test_a_stage_that_is_open_is_returned(site):
    first = open_stage("vqe", qpu="ibm_fez", opener="a")
    site.queue(*RUNNING)

    again = open_stage("vqe", qpu="ibm_fez", opener="b")

    assert again == replace(first, openers=("a", "b"))
    assert len(site.scripts) == 2


def qpu_stage_open(*options: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stage", "open", "vqe", "--qpu", "ibm_fez", *options])
    assert ended.value.code == 0


def test_options_that_an_open_stage_ignores_are_named(site, capsys):
    qpu_stage_open("--mode", "batch", "--time", "60", "--lanes", "3")
    site.queue(*RUNNING)
    qpu_stage_open("--mode", "batch", "--json")
    assert capsys.readouterr().err == ""

    qpu_stage_open("--mode", "dedicated", "--time", "90", "--lanes", "2", "--no-warm-up")

    assert capsys.readouterr().err == (
        "qpu: stage 'vqe' was open already, and keeps its own options. Ignored: --mode (it has "
        "batch), --no-warm-up, --lanes (it has 3), --time. To change them, close it first: `qpu "
        "stage close vqe`.\n"
    )


def test_a_stage_that_is_closing_is_open_again(site):
    open_stage("vqe", qpu="ibm_fez")
    site.queue(*RUNNING)
    update_stage("vqe", lambda stage: replace(stage, closing=True))

    assert not open_stage("vqe", qpu="ibm_fez").closing


def test_a_stage_that_has_ended_is_opened_anew(site):
    first = open_stage("vqe", qpu="ibm_fez")
    first.folder.environment.write_text("old")

    again = open_stage("vqe", qpu="FRESNEL")  # the queue no longer lists the keeper's job

    assert again.id != first.id
    assert (again.qpu, again.keeper_job) == ("FRESNEL", "3")
    assert not again.folder.environment.exists()


def test_tasks_of_a_stage_that_has_ended_keep_their_lanes(site):
    """Or the stage that is opened next under the name would have more tasks than lanes."""
    first = open_stage("vqe", qpu="ibm_fez")

    with LaneSemaphore(1, first.lanes_folder).hold_for_task():
        again = open_stage("vqe", qpu="ibm_fez")
        assert again.id != first.id
        assert is_locked(again.lanes_folder / "lane-0")
        other = open_stage("vqe", qpu="FRESNEL")
        assert not list(other.lanes_folder.glob("*")), "another QPU has lanes of its own"


def test_another_qpu_than_the_stages_own_is_refused(site):
    open_stage("vqe", qpu="ibm_fez")
    site.queue(*RUNNING)

    with pytest.raises(RequestError, match="is open with QPU 'ibm_fez', not 'FRESNEL'"):
        open_stage("vqe", qpu="FRESNEL")

    assert len(site.scripts) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lanes": 6}, "lanes=6, but QPU 'ibm_fez' has 5 here"),
        ({"lanes": 0}, "lanes=0: must be a positive integer"),
        ({"mode": "turbo"}, "mode 'turbo': must be one of: auto, dedicated, batch"),
        ({"idle_limit": 0}, "idle_limit=0: must be a positive number"),
        ({"idle_limit": float("nan")}, "idle_limit=nan: must be a positive number"),
        ({"options": ["--gres=gpu:1"]}, "option '--gres=gpu:1': --gres is set"),
        ({"options": ["--comment=x"]}, "--comment is set"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_submitted(site, arguments, message):
    with pytest.raises(RequestError, match=message):
        open_stage("vqe", qpu="ibm_fez", **arguments)

    assert site.scripts == []
    assert not StageFolder.of("vqe").stage.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a,b", "a" * 65, "-a"])
def test_a_name_that_is_not_plain_is_refused(site, name):
    with pytest.raises(RequestError, match="must be 1 to 64 letters"):
        open_stage(name, qpu="ibm_fez")


def test_a_qpu_that_is_not_offered_is_refused(site):
    with pytest.raises(UnknownQPUError, match="unknown QPU 'ibm_fes'"):
        open_stage("vqe", qpu="ibm_fes")
    site.commands.write("sinfo", "echo gpu:4")
    with pytest.raises(RequestError, match="no node of this Slurm has GRES"):
        open_stage("vqe", qpu="ibm_fez")

    assert site.scripts == []


def test_a_qpu_that_the_user_may_not_use_is_refused_before_anything_is_submitted(site):
    limits = 'partition = "q"\nusers = ["no-such-user"]\n'
    (site.folder / "site.toml").write_text(f"[qpus.ibm_fez]\n{limits}")

    with pytest.raises(RequestError, match=r"may not use it; must be one of: no-such-user"):
        open_stage("vqe", qpu="ibm_fez")

    assert site.commands.calls("sbatch") == []


def test_where_the_gres_counts_lanes_the_keeper_requests_those_of_the_stage(site):
    site.commands.write("sinfo", "echo qpu:ibm_fez:4")

    with pytest.raises(RequestError, match="has 4 here"):
        open_stage("vqe", qpu="ibm_fez", lanes=5)
    assert open_stage("vqe", qpu="ibm_fez", lanes=3).lanes == 3
    assert open_stage("all", qpu="ibm_fez").lanes == 4

    assert "--gres=qpu:ibm_fez:3\n" in site.scripts[0]
    assert "--gres=qpu:ibm_fez:4\n" in site.scripts[2]


def test_another_users_folder_is_refused(site):
    folder = StageFolder.of("vqe").path
    folder.mkdir(parents=True, mode=0o755)

    with pytest.raises(RequestError, match="must not be accessible to other users"):
        open_stage("vqe", qpu="ibm_fez")

    assert site.scripts == []


def test_a_refused_keeper_ends_the_stage(site):
    site.commands.write("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")

    with pytest.raises(SchedulerError, match="Invalid account"):
        open_stage("vqe", qpu="ibm_fez")

    assert "Invalid account" in find_stage("vqe").reason
    assert find_stage("vqe").is_ended


def test_a_refused_guard_is_left_to_the_keeper(site, caplog):
    site.commands.write("sbatch", "case $2 in */guard-job.sh) exit 1;; esac; echo 1")

    assert open_stage("vqe", qpu="ibm_fez").guard_job is None
    assert "the keeper will submit the guard" in caplog.text


def test_the_job_of_an_opener_that_died_is_found_by_its_mark(site):
    folder = StageFolder.of("vqe")
    with folder.locked():
        left = Stage(name="vqe", qpu="ibm_fez", type="", openers=("a",))
        left.save()
        (folder.path / "guard.sh").write_text("#!/bin/bash\ntrue\n")
    site.queue(("7", "PENDING", "(null)", f"qpu_keeper=vqe:{left.id}", "qpu-keeper-vqe"))

    stage = open_stage("vqe", qpu="ibm_fez")

    assert (stage.id, stage.keeper_job, stage.guard_job) == (left.id, "7", "1")


def test_no_token_is_submitted(site, monkeypatch):
    monkeypatch.setenv("QRMI_JOB_QPU_RESOURCES", "ibm_fez")
    monkeypatch.setenv("QRMI_JOB_QPU_TYPES", "ibm-quantum-compute-service")
    monkeypatch.setenv("ibm_fez_QRMI_JOB_ACQUISITION_TOKEN", "secret")
    monkeypatch.setenv("QPU_STAGE", "outer")
    site.commands.write("sbatch", f"env >>{site.folder}/env; echo 1")

    open_stage("vqe", qpu="ibm_fez")

    environ = (site.folder / "env").read_text()
    assert "secret" not in environ
    assert "QPU_STAGE=" not in environ
    assert os.environ["QPU_STATE"] in environ


def test_waiting_reports_what_the_stage_waits_for_and_how_it_ended(site):
    open_stage("vqe", qpu="ibm_fez")
    row = ["1", "1", "PENDING", "0", "Licenses", "(null)", "qpu-keeper-vqe", "(null)", "\n"]
    (site.folder / "queue").write_text("\x1f".join(row))
    told = []

    with pytest.raises(LeaseError, match="the keeper's job 1 is pending: Licenses") as e:
        wait_until_ready("vqe", seconds=0.2, report=told.append)

    assert e.value.retryable
    assert told == ["the keeper's job 1 is pending: Licenses"]
    site.queue(("1", "NODE_FAIL", "(null)"))
    with pytest.raises(LeaseError, match="has ended: its keeper's job 1 ended: NODE_FAIL"):
        wait_until_ready("vqe")
    assert find_stage("vqe").state is StageState.ENDED


def test_opening_a_stage_ends_others_whose_keepers_have_died(site, caplog):
    open_stage("vqe", qpu="ibm_fez")

    open_stage("qaoa", qpu="ibm_fez")

    assert find_stage("vqe").is_ended
    assert "stage 'vqe' has ended: its keeper's job 1 has ended" in caplog.text


def test_stages_that_ended_long_ago_are_forgotten(site):
    for name in ("old", "new", "open"):
        folder = open_stage(name, qpu="ibm_fez").folder
        if name != "open":
            update_stage(name, lambda now: replace(now, state=StageState.ENDED))
        if name != "new":
            os.utime(folder.stage, (0, 0))
    site.queue(*[(str(number), "RUNNING", "(null)") for number in range(1, 9)])

    open_stage("another", qpu="ibm_fez")

    assert [stage.name for stage in list_stages()] == ["another", "new", "open"]
