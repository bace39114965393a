"""`python -m raykd`."""

from raykd.cli.commands import main

if __name__ == "__main__":
    main()
