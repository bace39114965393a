"""Command line: `raykd VERB ...`."""


def main() -> None:
    """Run the command line and exit with its code."""
    from raykd.cli.commands import main as run

    run()
