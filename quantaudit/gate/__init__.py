"""Whether a recipe is safe on a checkpoint, from the checkpoint's card alone."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
