"""The `qpu` command: its help, and one message and an exit code for every error."""

from __future__ import annotations

import click
import pytest

from qrmi_workflows import cli
from qrmi_workflows.cli import main
from qrmi_workflows.config.variables import USER_VARIABLES
from qrmi_workflows.errors import PayloadError, ResourceError


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run `qpu`; return its exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def failing(monkeypatch):
    """Make `qpu list` fail with an error."""

    def replace(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(cli._LazyGroup, "get_command", lambda *_: command)

    return replace


def test_help_lists_every_command_and_every_variable_of_the_user(capsys):
    code, out, _ = run(capsys, "--help")

    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert listed >= {*cli._COMMANDS, *USER_VARIABLES}


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")

    assert code == 0
    assert out.startswith(f"Usage: qpu {command}")


def test_an_unknown_command_is_refused(capsys):
    code, _, err = run(capsys, "teleport")

    assert code == 2
    assert "No such command 'teleport'" in err


@pytest.mark.parametrize(("error", "code"), [(ResourceError("busy"), 1), (PayloadError("no"), 2)])
def test_an_error_is_one_line_and_an_exit_code(capsys, failing, error, code):
    failing(error)

    assert run(capsys, "list") == (code, "", f"qpu: {error}\n")


def test_an_error_of_the_file_system_names_the_file(capsys, failing):
    failing(PermissionError(13, "Permission denied", "result.json"))

    assert run(capsys, "list") == (1, "", "qpu: result.json: Permission denied\n")


def test_ctrl_c_ends_with_the_code_of_the_signal(capsys, failing):
    failing(KeyboardInterrupt())

    code, _, err = run(capsys, "list")

    assert code == 130
    assert "Traceback" not in err
