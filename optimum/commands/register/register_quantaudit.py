"""Found by optimum-cli in this namespace, which must have no `__init__.py`: adds `optimum-cli quantaudit`."""

from quantaudit.integrations.optimum import QuantauditCommand

REGISTER_COMMANDS = [QuantauditCommand]
