"""The HTTP API: messages, the route table, the application, and the OpenAPI document."""
