"""What one node of a gang has of its machine, also where several nodes are processes of one machine."""

from __future__ import annotations

from ..machine.neuron import neuron_cores
from .gang import Gang


def nodes_on_this_machine(gang: Gang) -> int:
    """How many of the nodes are processes of this machine, this one among them."""
    return sum(node.address == gang.node.address for node in gang.nodes)


def own_slots(gang: Gang) -> int:
    """This node's share of the machine's processors, 1 at least."""
    return max(1, gang.node.cpus // nodes_on_this_machine(gang))


def own_neuron_cores(gang: Gang) -> int:
    """This node's share of the machine's NeuronCores."""
    return neuron_cores() // nodes_on_this_machine(gang)
