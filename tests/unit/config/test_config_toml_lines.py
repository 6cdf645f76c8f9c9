"""The line of a key in a TOML file, however the key is written."""

from __future__ import annotations

import pytest

from qrmi_workflows.config.toml_lines import line_of

TEXT = '''# a comment, and [qpus.a] in it
scheduler = "slurm"

[defaults]
gres = """
[qpus.a]
lanes = 3"""

[qpus.a]  # another
lanes = 5
users = [
  "ada",  # lanes = 7
]

[qpus]
b.lanes = 2
"c.d" = { lanes = 1 }
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("scheduler",), 2),
        (("defaults",), 4),
        (("defaults", "gres"), 5),
        (("qpus", "a"), 9),
        (("qpus", "a", "lanes"), 10),
        (("qpus", "a", "users"), 11),
        (("qpus", "b", "lanes"), 16),
        (("qpus", "c.d", "lanes"), 17),
        (("qpus", "a", "absent"), None),
        (("absent", "key"), None),
    ],
)
def test_the_line_of_a_key_is_found(keys, line):
    assert line_of(TEXT, keys) == line
