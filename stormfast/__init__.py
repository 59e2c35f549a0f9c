"""stormfast: a STORM world-model agent, trained from pixels in the least wall-clock time."""

__version__ = "0.1.0"
