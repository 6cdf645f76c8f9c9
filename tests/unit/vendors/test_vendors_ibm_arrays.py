"""Arrays that are read without NumPy agree with NumPy's."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zlib
from typing import Any

import numpy as np
import pytest

from qrmi_workflows.errors import ResultError
from qrmi_workflows.vendors.ibm.arrays import read_bytes, shape_of
from qrmi_workflows.vendors.ibm.checks import _do_broadcast
from qrmi_workflows.vendors.ibm.results import decode_arrays, decode_data


def npy(array: Any, **options: Any) -> bytes:
    """Return an array as NumPy writes it to a file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3, 1), (1, 0), (2, 3, 4)])
def test_bytes_are_read_as_numpy_reads_them(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)

    assert read_bytes(npy(array)) == (array.tobytes(), array.shape)


@pytest.mark.parametrize(
    "file",
    [
        npy(np.zeros(3)),
        npy(np.zeros(3, bool)),
        npy(np.asfortranarray(np.zeros((2, 3), np.uint8))),
        npy(np.zeros(3, np.uint8), version=(2, 0)),
        npy(np.zeros(3, np.uint8))[:-1],
        npy(np.zeros(3, np.uint8))[:20],
        npy(np.zeros(3, np.uint8)).replace(b"descr", b"other"),
        b"\x93NUMPY\x01\x00",
        b"",
    ],
    ids=["floats", "bools", "Fortran", "version 2", "short", "cut", "other key", "magic", "empty"],
)
def test_anything_else_is_left_to_numpy(file):
    assert read_bytes(file) is None


def sampled(array: Any, num_bits: int) -> str:
    """Return a sampler's result as `RuntimeEncoder` writes it."""
    text = base64.b64encode(zlib.compress(npy(array))).decode()
    bits = {"array": {"__type__": "ndarray", "__value__": text}, "num_bits": num_bits}
    fields = {"c": {"__type__": "BitArray", "__value__": bits}}
    data = {"__type__": "DataBin", "__value__": {"fields": fields}}
    pub = {"__type__": "SamplerPubResult", "__value__": {"data": data, "metadata": {}}}
    result = {"__type__": "PrimitiveResult", "__value__": {"pub_results": [pub]}}
    return json.dumps(result)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_register_is_the_same_by_either_reader(order):
    """An array in Fortran's order is read by NumPy."""
    array = np.asarray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 7, order=order)
    text = sampled(array, 27)

    registers = decode_data("sampler", text)[0]["registers"]
    (arrays,) = decode_arrays("sampler", text)

    assert arrays["c"].shape == (2, 3, 27)
    for counts, rows in zip(registers["c"]["counts"], arrays["c"], strict=True):
        samples = ["".join(map(str, row)) for row in rows]
        assert counts == {each: samples.count(each) for each in sorted(samples)}


def test_a_register_of_other_numbers_is_not_decoded():
    with pytest.raises(ResultError, match="a register of type int64"):
        decode_data("sampler", sampled(np.zeros((3, 1), np.int64), 3))


@pytest.mark.parametrize("value", [1, [], [1, 2.5], [[1], [2]], [[[1, 2]] * 3] * 2, [[], []]])
def test_the_shape_of_lists_is_that_of_an_array(value):
    assert shape_of(value, (int, float)) == np.shape(value)


@pytest.mark.parametrize("value", ["1", None, [1, None], [1, [2]], [[1], 2], [[1], [2, 3]], [{}]])
def test_ragged_lists_and_other_values_have_no_shape(value):
    assert shape_of(value, (int, float)) is None


def test_shapes_broadcast_as_numpy_says():
    shapes = [(), (0,), (1,), (2,), (3,), (1, 2), (2, 1), (3, 2), (2, 1, 3), (0, 1)]
    for one, other in itertools.product(shapes, repeat=2):
        try:
            np.broadcast_shapes(one, other)
        except ValueError:
            assert not _do_broadcast(one, other)
        else:
            assert _do_broadcast(one, other)
