"""What is shown of a failed job's log: what the program wrote, not Snakemake's closing lines."""

import tracemalloc

import pytest

from snakemake_executor_plugin_slurm_qpu.job_log import error_lines, is_too_long_to_show, read_error

HEAD = """\
SNAKEMAKE
=========
  Snakemake version: 9.27.1
  Command: snakemake --mode remote

Building DAG of jobs...
Using shell: /usr/bin/bash
Select jobs to execute...
Execute 1 jobs...

[Thu Nov 26 04:04:52 2026]
localrule quantum:
    output: a.json
    jobid: 0
    resources: tmpdir=/tmp, qpu=1, qpu_name=ibm_fez
"""
TAIL = """\
[Thu Nov 26 04:04:52 2026]
Error in rule quantum:
    message: None
    jobid: 0
    output: a.json
Shutting down, this might take some time.
Exiting because a job execution failed. Look above for error messages
Storing output in storage.
Elapsed time: 0:00:00.438093
WorkflowError:
At least one job did not complete successfully.
"""
COMMAND = """\
RuleException:
CalledProcessError in file "/w/Snakefile", line 6:
Command 'set -euo pipefail;  python s.py
  a second line' returned non-zero exit status 1.
"""
TRACEBACK = """\
Traceback (most recent call last):
  File "/w/.snakemake/scripts/tmpvt4mgoxf.s.py", line 7, in <module>
    deep(3)
  File "/w/.snakemake/scripts/tmpvt4mgoxf.s.py", line 6, in deep
    raise ValueError("THE REASON")
ValueError: THE REASON
"""
STATUS = "Command returned non-zero exit status 1."
KILLED = "Command died with <Signals.SIGKILL: 9>."
RUN = """\
RuleException:
ValueError in file "/w/Snakefile", line 11:
THE REASON
  File "/w/Snakefile", line 11, in __rule_run_
"""


@pytest.mark.parametrize(
    ("between", "shown"),
    [
        (TRACEBACK + COMMAND, [*TRACEBACK.splitlines(), STATUS]),
        (RUN, RUN.splitlines()[1:]),
        ("THE REASON\n" + COMMAND, ["THE REASON", STATUS]),
        ("", []),
        (COMMAND, [STATUS]),
        (COMMAND.replace(STATUS[8:-1], KILLED[8:-1]), [KILLED]),
    ],
    ids=["script", "run", "shell", "nothing", "a silent command", "a killed command"],
)
def test_of_a_rule_in_a_snakemake_what_it_wrote_is_shown(between, shown):
    """Logs of snakemake 9.27.1."""
    found = error_lines(HEAD + between + TAIL)

    assert found == shown or (not shown and "SNAKEMAKE" in found)


def test_of_a_group_what_the_first_failing_rule_wrote_is_shown():
    second = HEAD[HEAD.index("[Thu") :].replace("quantum", "second")
    text = f"{HEAD}of the first\n{second}THE REASON\n{COMMAND}{TAIL.replace('quantum', 'second')}"

    assert error_lines(text) == ["THE REASON", STATUS]
    assert error_lines(text + "later\n" + TAIL) == ["THE REASON", STATUS]


def test_a_snakemake_that_fails_before_or_without_a_rule_is_shown_too():
    assert error_lines("qpu: QPU 'a' could not be acquired\n") == [
        "qpu: QPU 'a' could not be acquired"
    ]
    assert error_lines(f"{HEAD}slurmstepd: error: CANCELLED DUE TO TIME LIMIT\n") == [
        "slurmstepd: error: CANCELLED DUE TO TIME LIMIT"
    ]


def test_the_last_lines_of_a_commands_own_log_are_shown(tmp_path):
    log = tmp_path / "1.log"
    log.write_text("\n".join(map(str, range(100))))

    shown = read_error(log, has_snakemake=False)

    assert shown == "\n".join(f"    {i}" for i in range(88, 100))
    assert read_error(tmp_path / "none.log", has_snakemake=False) == ""
    assert read_error(None, has_snakemake=True) == ""


def test_a_log_of_any_size_costs_little_memory_and_few_characters(tmp_path):
    log = tmp_path / "1.log"
    with log.open("wb") as file:
        file.truncate(3_000_000_000)  # sparse
        file.seek(0, 2)
        file.write(b"\nTHE REASON\n")

    tracemalloc.start()
    shown = read_error(log, has_snakemake=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000
    assert shown.endswith("\n    THE REASON")
    assert len(shown) < 500
    assert is_too_long_to_show(log)


def test_a_log_that_is_short_or_missing_is_not_too_long_to_show(tmp_path):
    (tmp_path / "1.log").write_text("short")

    assert not is_too_long_to_show(tmp_path / "1.log")
    assert not is_too_long_to_show(tmp_path / "2.log")
    assert not is_too_long_to_show(None)
