"""The benchmark: rows of contestants, each contestant a live process, measured in turns in one run."""
