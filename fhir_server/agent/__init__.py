"""The print agent: at the printer's site, a client of the server that prints what is addressed to its Device."""
