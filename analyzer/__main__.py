"""`python -m analyzer` is `superweight`."""

from analyzer.cli import main

if __name__ == "__main__":
    main()
