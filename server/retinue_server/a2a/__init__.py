"""The A2A protocol: the request handler, the executor of agents, cards, and the three bindings."""
