"""A better recipe: the least change whose predicted cost is accepted, simulated before it is given."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
