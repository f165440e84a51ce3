"""Which scheme for which fused group, under a budget of bytes, compute or KL: from a simulation alone."""

from quantaudit.simulate.allocation.compute import Serving
from quantaudit.simulate.allocation.hardware import Hardware, load_hardware
from quantaudit.simulate.allocation.menu import UNQUANTIZED, Menu, menu_of, order_dependent
from quantaudit.simulate.allocation.solve import Limit, Point, frontier, size_of_bits, solve, uniform

__all__ = [
    "UNQUANTIZED",
    "Hardware",
    "Limit",
    "Menu",
    "Point",
    "Serving",
    "frontier",
    "load_hardware",
    "menu_of",
    "order_dependent",
    "size_of_bits",
    "solve",
    "uniform",
]
