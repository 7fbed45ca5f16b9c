"""`python -m ranksearch`."""

from ranksearch.app import main

if __name__ == "__main__":
    main()
