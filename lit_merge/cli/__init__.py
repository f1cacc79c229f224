"""The command line: a file for each verb, the parser of configurations, and messages about mistakes in them.

It holds no formulas. torch is imported when a verb needs it, Lightning only by the verbs that run a Trainer.
"""
