"""The HTTP application: routes, messages, errors and the OpenAPI document."""
