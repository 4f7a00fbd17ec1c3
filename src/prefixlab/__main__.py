"""`python -m prefixlab`: the command line."""

from prefixlab.cli import main

main()
