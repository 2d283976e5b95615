"""Logs, metrics, the recall monitor and the request sampler."""
