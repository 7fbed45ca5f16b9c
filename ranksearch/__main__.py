"""Entry point of `python -m ranksearch` and of the console script of that name."""

from ranksearch.cli.interrupts import exit_on_interrupt

with exit_on_interrupt():
    from ranksearch.cli.main import main

if __name__ == "__main__":
    main()
