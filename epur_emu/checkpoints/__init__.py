"""Importers: a file of weights to a `Network`; one module per format."""
