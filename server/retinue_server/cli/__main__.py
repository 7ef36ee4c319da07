"""`python -m retinue_server.cli`: the command `retinue`."""

from .main import main

main()
