"""`python -m quantaudit`."""

from quantaudit.cli import main

if __name__ == "__main__":
    main()
