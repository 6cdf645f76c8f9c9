"""The order of the qubits of a wide circuit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from qrmi_workflows.emulator.simulators.circuits import LoadedCircuit

__all__ = ["order_by_coupling"]


def order_by_coupling(loaded: LoadedCircuit) -> LoadedCircuit:
    """Return the circuit with coupled qubits next to each other.

    The cost of matrix product states grows with the entanglement across each cut of the order; that
    of the indices on a device leaves the ends of a gate far apart.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    circuit = loaded.circuit
    size = circuit.num_qubits
    pairs = [pair for item in circuit.data for pair in _pairs(circuit, item)]
    rows, columns = np.array(pairs or [(0, 0)]).T
    ones = np.ones(2 * len(rows))
    ends = (np.r_[rows, columns], np.r_[columns, rows])
    matrix = coo_matrix((ones, ends), shape=(size, size)).tocsr()
    order = [int(index) for index in reverse_cuthill_mckee(matrix, symmetric_mode=True)]
    place = {circuit.qubits[index]: circuit.qubits[rank] for rank, index in enumerate(order)}
    ordered = circuit.copy_empty_like()
    for item in circuit.data:
        qubits = [place[qubit] for qubit in item.qubits]
        ordered.append(item.operation, qubits, item.clbits, copy=False)
    return replace(loaded, circuit=ordered, active=tuple(loaded.active[index] for index in order))


def _pairs(circuit: Any, item: Any) -> list[tuple[int, int]]:
    if item.operation.name == "barrier":
        return []
    indices = [circuit.find_bit(qubit).index for qubit in item.qubits]
    return list(itertools.pairwise(indices))
