"""What people see of results: scores, tables, figures, files of predictions, and the analysis of experts.

It computes nothing that a merge depends on.
"""
