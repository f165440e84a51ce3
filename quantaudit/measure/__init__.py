"""One pass over a corpus with every site tapped, into a profile."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
