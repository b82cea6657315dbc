"""Runs to look at: curves in the terminal, as SVG and PNG, comparisons, and the page report.html."""
