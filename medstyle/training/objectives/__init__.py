"""Objectives by kind: which networks play, in which phases, and what each phase minimises."""
