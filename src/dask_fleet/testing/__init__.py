"""Conformance suites, fake agents and served fleets: shipped, so that authors of plug-ins test with what we test with."""
