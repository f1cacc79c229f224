"""What a stream is called in which nobody says which task an image belongs to.

Its head is the union of the heads of all tasks: a softmax over all their classes, in the order of the tasks.
"""

MIXED = "mixed"
MIXED_PROTOCOL = "tasks mixed in one stream: a prediction counts where it is right among the classes of all tasks"
