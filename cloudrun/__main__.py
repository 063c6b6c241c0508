"""`python -m cloudrun` is the command line."""

from cloudrun.cli.main import main

main()
