"""To test what talks MQTT: a pytest plugin, faulty in-memory networks, and a deterministic simulation of the broker itself.

Nothing is imported here: the plugin is loaded by every pytest run of an environment that has the broker installed.
"""
