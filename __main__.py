"""`python -m smelt` is the command line."""

from .cli import main

main()
