"""Which scheme for which fused group, under a budget of bytes or of KL: solved exactly, from a simulation alone."""

from quantaudit.simulate.allocation.menu import UNQUANTIZED, Menu, menu_of, order_dependent
from quantaudit.simulate.allocation.solve import Point, frontier, size_of_bits, solve, uniform

__all__ = ["UNQUANTIZED", "Menu", "Point", "frontier", "menu_of", "order_dependent", "size_of_bits", "solve", "uniform"]
