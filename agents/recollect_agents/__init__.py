"""Agents that remember."""
