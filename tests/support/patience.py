"""How long a test waits for what should come at once."""

PATIENCE = 20.0
"""Seconds: enough on a machine whose processors others keep busy, and less than the half minute
after which the alarms repeat what was lost on the way, so that such a loss is still seen."""
