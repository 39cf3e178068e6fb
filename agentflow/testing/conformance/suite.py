"""All checks in one class."""

from __future__ import annotations

from agentflow.testing.conformance.delivering import Delivering
from agentflow.testing.conformance.describing import Describing
from agentflow.testing.conformance.ending import Ending
from agentflow.testing.conformance.failing import Failing
from agentflow.testing.conformance.keeping import Keeping
from agentflow.testing.conformance.loading import Loading
from agentflow.testing.conformance.reading import Reading
from agentflow.testing.conformance.signing import Signing


class PluginConformance(
    Describing, Loading, Failing, Ending, Signing, Reading, Delivering, Keeping
):
    """Inherit it in a test module of the plugin, set the attributes of `Subject`, run pytest.

    A check that does not apply is skipped and says why. One that fails says what to do.
    """
