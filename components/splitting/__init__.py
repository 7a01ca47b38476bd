"""Scored examples become tiers and a split report."""
