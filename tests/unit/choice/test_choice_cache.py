"""The cache of what QPUs answered: what is damaged or too old is asked for again."""

from __future__ import annotations

import pytest

from qrmi_workflows.choice.cache import read_cached, write_cached


def test_an_answer_is_kept_for_a_while(tmp_path):
    path = tmp_path / "folder" / "answer.json"
    write_cached(path, {"queue": 3}, at=2e9)

    assert read_cached(path, 1e10) == {"queue": 3, "at": 2e9}
    assert read_cached(path, 1.0) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"at": null}', '{"at": "now"}', '{"at": 1' + "0" * 400 + "}"]
)
def test_a_damaged_file_is_no_answer(tmp_path, content):
    path = tmp_path / "answer.json"
    path.write_text(content)

    assert read_cached(path, 1e12) is None
    assert read_cached(None, 1e12) is None
