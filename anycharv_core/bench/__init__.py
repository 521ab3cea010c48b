"""Scores: PuppetBench, whose truth is exact, and metrics for real videos."""
