"""What quantizing would do: to each tensor (offline), to each decoder block (replay), to the whole model (logits)."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
