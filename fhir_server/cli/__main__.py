"""`python -m fhir_server.cli`: the command `fhir-imaging` without its script."""

from fhir_server.cli import main

if __name__ == "__main__":
    main()
