"""`python -m istio_init`."""

from istio_init.cli.main import main

main()
