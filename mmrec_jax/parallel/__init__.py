"""Runs over many devices and hosts."""
