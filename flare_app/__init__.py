"""The FLARE application: runs the bundle at every site and exchanges weights and features between sites."""

__version__ = "0.1.0"
