"""Serve the studio: one page to translate, compare, and decide about models."""
