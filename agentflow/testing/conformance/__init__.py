"""The suite that says when a plugin is done: `PluginConformance`, a class to inherit.

    from agentflow.testing import Order, PluginConformance

    class TestAcme(PluginConformance):
        provider = acme
        simulator = AcmeSimulator
        orders = [Order("upscale", {"url": "https://example.com/cat.png"}, later=True)]

It needs pytest (`pip install agentflow-core[testing]`) and nothing else of the plugin's author.
"""
