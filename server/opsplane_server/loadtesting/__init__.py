"""Load tests: OpenAPI documents become endpoints, endpoints become k6 scripts, runs give live and lasting figures."""
