"""Rolling upgrades of a running service, host by host, in an order that keeps every request answerable. No torch."""
