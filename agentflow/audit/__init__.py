"""The audit: every history folded to its row, every decision of this version made again.

It proves that rows, histories and decisions agree with each other. It is no seal: whoever may
write everything can also write a history that agrees.
"""
