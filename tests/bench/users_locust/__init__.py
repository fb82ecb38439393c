"""The users of examples/panacea.yaml as a Locust project, to compare with."""
