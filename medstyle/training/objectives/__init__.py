"""Objectives by kind: the networks to train, the phases, and what each phase minimises."""
