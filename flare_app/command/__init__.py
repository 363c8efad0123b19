"""The command ``fcl``: every tool of this project under one name. It adds nothing to the modules that it calls."""
