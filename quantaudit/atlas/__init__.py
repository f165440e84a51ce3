"""A static site over a folder of cards."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
