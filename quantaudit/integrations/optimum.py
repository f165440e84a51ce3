"""`optimum-cli quantaudit …`: quantaudit's own command line under Optimum's, word for word, exit codes included."""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

PROGRAM = "optimum-cli quantaudit"


class QuantauditCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Hands everything behind `quantaudit` on. Importing this imports nothing heavy: Optimum does so at every start."""

    COMMAND = CommandInfo(name="quantaudit", help="Tell whether low-bit activations will work on a model.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take all arguments as they are, `--help` and other options among them."""
        # Options begin with none of our characters, so that argparse sees none of its own.
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run the verb; ends in SystemExit with its exit code."""
        from quantaudit.cli import main

        sys.argv[:] = [PROGRAM, *self.args.arguments]
        main()
