"""Counts by bit string, as registers and as bits."""

from qrmi_workflows.vendors.counts import to_bits, to_register

COUNTS = {"001": 2, "110": 1}


def test_a_register_has_the_width_of_its_bit_strings():
    assert to_register(COUNTS) == {"num_bits": 3, "counts": COUNTS}
    assert to_register({}) == {"num_bits": 0, "counts": {}}


def test_each_shot_is_a_row_of_bits():
    assert to_bits(COUNTS).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
