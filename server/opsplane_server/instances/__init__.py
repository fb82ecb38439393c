"""Instances: database servers on demand, single or highly available."""
