"""Search every order of everything that can happen to one job.

`explore(World(name="…"))` walks breadth first through all states of a small world round one job:
workers that die between any two steps, a provider whose webhooks are early, late, lost and
repeated, a user who cancels, a clock. It returns what it counted, and raises `Broken`, with the
shortest way there, for the first step that breaks a rule of the design.
"""

from agentflow.testing.explorer.rules import Broken
from agentflow.testing.explorer.search import Explored, explore
from agentflow.testing.explorer.world import World

__all__ = ["Broken", "Explored", "World", "explore"]
