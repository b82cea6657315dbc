"""Attacks on runs: kills, signals, flipped bits, shortened files, small disks and mutated rows, each from a seed.

`python tests/reliability/attack/report.py` makes them and prints a table of counts; `test_attack.py` holds them.
"""
